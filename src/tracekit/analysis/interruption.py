"""Lets Ctrl-C end a query, and tells how far it is: DuckDB does not look for signals while it computes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import duckdb

T = TypeVar("T")

_WATCH_SECONDS = 0.2


def interruptible(
    connection: duckdb.DuckDBPyConnection,
    call: Callable[[], T],
    watch: Callable[[float], None] | None = None,
    cancel: Callable[[], None] | None = None,
) -> T:
    """Runs a call that computes on a connection; KeyboardInterrupt ends what it computes, and is raised.

    Only the main thread gets signals, and only while it waits in Python: so the call runs in another one.

    Args:
        connection: where it computes.
        call: what computes.
        watch: is told, a few times a second, how much is done in per cent; less than 0 where that is unknown.
        cancel: ends what the call computes elsewhere.
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
        while not done.wait(None if watch is None else _WATCH_SECONDS):
            if watch is not None:
                watch(connection.query_progress())
    except KeyboardInterrupt:
        connection.interrupt()
        if cancel is not None:
            cancel()
        done.wait()
        raise
    if errors:
        raise errors[0]
    return results[0]
