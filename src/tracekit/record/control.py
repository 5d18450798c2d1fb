"""How the process that started a recording ends it in the engine's other processes: a file they look for."""

from __future__ import annotations

import time
from pathlib import Path

from tracekit.store.layout import JOURNAL
from tracekit.store.lease import live_writers


def _stop_file(trace: Path, session: str) -> Path:
    return trace / JOURNAL / f"{session}.stop"


def stop_requested(trace: Path, session: str) -> bool:
    """Tells a worker whether its recording was ended."""
    return _stop_file(trace, session).exists()


def stop_workers(trace: Path, session: str, timeout: float = 10.0) -> list[str]:
    """Ends a session's recording in all processes and waits for them.

    Returns:
        The writers that had not finished in time.
    """
    stop = _stop_file(trace, session)
    stop.touch()
    deadline = time.monotonic() + timeout
    try:
        while (live := live_writers(trace / JOURNAL, session)) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        stop.unlink(missing_ok=True)
    return live
