"""Signs between the processes of a recording: files in the trace's journal folder, named after the session."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from tracekit.store.layout import JOURNAL
from tracekit.store.lease import live_writers


def _stop_file(trace: Path, session: str) -> Path:
    return trace / JOURNAL / f"{session}.stop"


def _loaded_file(trace: Path, session: str) -> Path:
    return trace / JOURNAL / f"{session}.loaded"


def note_loaded(trace: Path, session: str) -> None:
    """Leaves a sign that the plugin was loaded in some process of the session, if its trace is there already."""
    with contextlib.suppress(OSError):
        _loaded_file(trace, session).touch()


def take_loaded(trace: Path, session: str) -> bool:
    """Tells whether the plugin was loaded in any process of the session, and removes the sign."""
    path = _loaded_file(trace, session)
    loaded = path.exists()
    path.unlink(missing_ok=True)
    return loaded


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
