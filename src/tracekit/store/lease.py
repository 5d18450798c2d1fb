"""A writer's sign of life: a file it holds locked; the kernel lets go of it when the process dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import weakref
from pathlib import Path
from typing import IO

from tracekit.errors import InputError

# A probe by `is_live` holds the lock for an instant: a taken name stays locked for longer than this.
_PATIENCE_SECONDS = 0.5


class Lease:
    """Held from a writer's first row to its last.

    Raises:
        InputError: a living writer holds this lease.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        path.parent.mkdir(exist_ok=True)
        self.path = path
        self._file: IO[str] | None = _lock(path)
        self._file.truncate(0)
        json.dump({"run_id": run_id, "pid": os.getpid(), "hostname": socket.gethostname()}, self._file)
        self._file.flush()
        _held.add(self)

    def release(self) -> None:
        """Removes the file: this writer has ended."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._forget()

    def _forget(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


_held: weakref.WeakSet[Lease] = weakref.WeakSet()


def _forget_parents_leases() -> None:
    # A lock belongs to all copies of its descriptor: one left open in a child would outlive the writer.
    for lease in _held:
        lease._forget()


os.register_at_fork(after_in_child=_forget_parents_leases)


def _lock(path: Path) -> IO[str]:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        file = path.open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            if time.monotonic() > deadline:
                raise InputError(f"writer '{path.stem}' is at work in {path.parent.parent}; use another name") from None
            time.sleep(0.01)
            continue
        if _is_same_file(file, path):
            return file
        file.close()  # It was removed between opening and locking.


def _is_same_file(file: IO[str] | IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def is_live(path: Path) -> bool:
    """Tells whether the process that holds the lease still runs."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def remove_if_dead(path: Path) -> None:
    """Removes a lease that nobody holds."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Still locked while it goes, so that no new writer can have taken it.
            if _is_same_file(file, path):
                path.unlink()
    except (FileNotFoundError, BlockingIOError):
        return


def live_writers(root_journal: Path, run_id: str | None = None) -> list[str]:
    """Returns the writers of a trace that still run, of one run or of all.

    Args:
        root_journal: the trace's folder of journals.
        run_id: the run, or how its id begins.
    """
    live = []
    for path in sorted(root_journal.glob("*.lease")):
        if not is_live(path):
            continue
        try:
            holder = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            holder = {}
        if run_id is None or str(holder.get("run_id", "")).startswith(run_id):
            live.append(path.stem)
    return live
