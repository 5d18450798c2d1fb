"""Opens other people's shells on traces: DuckDB's own, and harlequin."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tracekit.analysis import Session
from tracekit.errors import BackendUnavailableError


@dataclass(frozen=True)
class Program:
    """A program that opens a database file.

    Attributes:
        install: how it is installed.
        arguments: what stands before the file.
    """

    install: str
    arguments: tuple[str, ...]


PROGRAMS = {
    "duckdb": Program("pip install duckdb-cli, or see duckdb.org", ("-readonly",)),
    "harlequin": Program("pip install harlequin", ("--adapter", "duckdb", "--read-only")),
}


def open_program(name: str, make: Callable[[Path], Session]) -> int:
    """Runs a program on all that a session has, until it ends.

    Args:
        name: one of PROGRAMS.
        make: makes the session, with this file for its database.

    Returns:
        Its exit code.

    Raises:
        BackendUnavailableError: it is not installed.
        TracekitError: whatever `make` raises.
    """
    program = _found(name)
    with tempfile.TemporaryDirectory(prefix="tracekit-") as folder:
        # A file of SQL would not do: harlequin cuts one at each ';', wherever it stands.
        file = Path(folder, "traces.duckdb")
        with make(file) as session:
            # Of two processes that open a database, neither may write.
            session.disconnect()
            # Ctrl-C is the program's. It inherits that the signal is ignored, and sets a handler where it has one.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                return subprocess.run([program, *PROGRAMS[name].arguments, str(file)]).returncode
            finally:
                signal.signal(signal.SIGINT, before)


def _found(name: str) -> str:
    # Beside this interpreter too: an environment need not be activated to be used.
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        raise BackendUnavailableError(
            f"the program '{name}' is not installed: {PROGRAMS[name].install}; without --cli nothing is needed"
        )
    return path
