"""A writer's sign of life: a file it holds locked; the kernel lets go of it when the process dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO


class Lease:
    """Held from a writer's first row to its last."""

    def __init__(self, path: Path, run_id: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: IO[str] | None = path.open("w", encoding="utf-8")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        json.dump({"run_id": run_id, "pid": os.getpid(), "hostname": socket.gethostname()}, self._file)
        self._file.flush()
        os.register_at_fork(after_in_child=self._forget)

    def release(self) -> None:
        """Removes the file: this writer wrote all it had."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _forget(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def is_live(path: Path) -> bool:
    """Tells whether the process that holds the lease still runs."""
    try:
        with path.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def live_writers(root_journal: Path, run_id: str | None = None) -> list[str]:
    """Returns the writers of a trace that still run, of one run or of all."""
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
