"""Which parts of a table count at this moment: those that are listed, as a compaction in force changes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tracekit.store.intent import Intent
from tracekit.store.layout import Segment, journal_segments, part_segments


@dataclass(frozen=True)
class Parts:
    """The parts of one table.

    Attributes:
        files: by segment, in order, where each stands.
        superseded: segments whose rows stand in other parts of `files`.
    """

    files: dict[Segment, Path]
    superseded: frozenset[Segment]

    def __contains__(self, segment: Segment) -> bool:
        """Tells whether the rows of a segment stand in a part."""
        return segment in self.files or segment in self.superseded


def current_parts(root: Path, table: str) -> Parts:
    """Returns the parts that hold each row of a table once.

    Raises:
        TraceFormatError: a compaction's intent cannot be read.
    """
    files = {segment: segment.part(root) for segment in part_segments(root, table)}
    # Read after the listing: what was listed before it came into force is superseded all the same.
    intent = Intent.read(root, table)
    if intent is None:
        return Parts(files, frozenset())
    files = {segment: path for segment, path in files.items() if segment not in intent.superseded}
    files |= {segment: intent.part(root, segment) for segment in intent.new}
    return Parts(dict(sorted(files.items())), intent.superseded)


def first_free_segment(root: Path, table: str, writer: str) -> Segment:
    """Returns the segment after all that a writer of this name left in a table."""
    listed = part_segments(root, table) + journal_segments(root, table)
    # Read last: the parts of an intent that goes away meanwhile are gone too, and their names free.
    intent = Intent.read(root, table)
    if intent is not None:
        listed += [*intent.superseded, *intent.new]
    return Segment(table, writer, max((segment.seq for segment in listed if segment.writer == writer), default=-1) + 1)
