"""Takes a trace back to a checkpoint of one of its writers."""

from __future__ import annotations

from pathlib import Path

from tracekit.errors import InputError
from tracekit.schema import table_names
from tracekit.store.layout import journal_segments, lease_path, part_segments, unfinished_parts
from tracekit.store.lease import is_live, remove_if_dead
from tracekit.store.writer import Checkpoint


def roll_back(root: Path, writer: str, checkpoint: Checkpoint) -> None:
    """Removes what a writer that no longer runs wrote after a checkpoint; may be repeated and interrupted.

    Raises:
        InputError: the writer runs, or files cannot be removed.
    """
    lease = lease_path(root, writer)
    if is_live(lease):
        raise InputError(f"{root}: writer '{writer}' is at work; wait for it")
    try:
        for table in table_names():
            # Journals first: one of a part that is gone would be read in its place.
            later = [segment for segment in journal_segments(root, table) if segment.writer == writer]
            for segment in later:
                segment.journal(root).unlink(missing_ok=True)
            for segment in part_segments(root, table):
                if segment.writer == writer and segment.seq >= checkpoint.get(table, 0):
                    segment.part(root).unlink(missing_ok=True)
            for name, path in unfinished_parts(root, table):
                if name == writer:
                    path.unlink(missing_ok=True)
        remove_if_dead(lease)
    except OSError as error:
        raise InputError(f"{root} cannot be taken back to its last checkpoint: {error}") from error
