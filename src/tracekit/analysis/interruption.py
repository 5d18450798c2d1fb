"""Lets Ctrl-C end a query: DuckDB does not look for signals while it computes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import duckdb

T = TypeVar("T")


def interruptible(connection: duckdb.DuckDBPyConnection, call: Callable[[], T]) -> T:
    """Runs a call that computes on a connection; KeyboardInterrupt ends what it computes, and is raised.

    Only the main thread gets signals, and only while it waits in Python: so the call runs in another one.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    results: list[T] = []
    errors: list[BaseException] = []
    # Not Thread.join: after a join that was interrupted, Python 3.11 takes the thread for dead.
    done = threading.Event()

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="tracekit-query", daemon=True).start()
    try:
        done.wait()
    except KeyboardInterrupt:
        connection.interrupt()
        done.wait()
        raise
    if errors:
        raise errors[0]
    return results[0]
