"""Brings the files of a compaction in place that is in force."""

from __future__ import annotations

from pathlib import Path

from tracekit.store.hold import exclusively
from tracekit.store.intent import Intent


def finish_pending(root: Path, table: str, patience_seconds: float) -> bool:
    """Finishes what a compaction of a table left, once nobody reads the trace.

    Returns:
        False where readers are still at work after `patience_seconds`: then all stays as it is, which they honour.

    Raises:
        TraceFormatError: the intent cannot be read.
        OSError: files cannot be renamed or removed.
    """
    if Intent.read(root, table) is None:
        return True
    with exclusively(root, patience_seconds) as alone:
        if not alone:
            return False
        # Read anew: another process may have finished it, and a writer taken the names that became free.
        intent = Intent.read(root, table)
        if intent is not None:
            intent.finish(root)
    return True
