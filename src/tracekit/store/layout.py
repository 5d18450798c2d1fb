"""Names of files inside a trace directory."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

MANIFEST = "manifest.json"
JOURNAL = "journal"
EMPTY_WRITER = "empty"

# More parts than one writer makes while a directory is listed.
_RECENT = 64

_WRITER = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_FILE = re.compile(rf"(?P<writer>{_WRITER})-(?P<seq>[0-9]{{6,}})(?:\.parquet|\.arrows\.zst)")
_UNFINISHED_PART = re.compile(rf"\.(?P<writer>{_WRITER})-[0-9]{{6,}}\.parquet\..+")


@dataclass(frozen=True, order=True)
class Segment:
    """What one part file, or the journal that becomes it, is called: (table, writer, seq)."""

    table: str
    writer: str
    seq: int

    def part(self, root: Path) -> Path:
        return root / self.table / f"{self.writer}-{self.seq:06d}.parquet"

    def journal(self, root: Path) -> Path:
        return root / JOURNAL / self.table / f"{self.writer}-{self.seq:06d}.arrows.zst"

    @classmethod
    def of(cls, table: str, path: Path) -> Segment | None:
        """Returns the segment that a file name stands for, or None for a file that is not ours."""
        match = _FILE.fullmatch(path.name)
        return cls(table, match["writer"], int(match["seq"])) if match else None


def is_writer_name(name: str) -> bool:
    """Tells whether a writer may be called so."""
    return re.fullmatch(_WRITER, name) is not None and name != EMPTY_WRITER


def part_segments(root: Path, table: str) -> list[Segment]:
    """Returns the parts of a table, sorted; with a writer's part, those it made just before are listed too."""
    listed = set(_segments(root / table, table, ".parquet"))
    newest: dict[str, Segment] = {}
    for segment in sorted(listed):
        newest[segment.writer] = segment
    # A directory listing may miss files that appear while it runs, and show later ones all the same.
    missed = (replace(last, seq=seq) for last in newest.values() for seq in range(max(last.seq - _RECENT, 0), last.seq))
    listed |= {segment for segment in missed if segment not in listed and segment.part(root).exists()}
    return sorted(listed)


def journal_segments(root: Path, table: str) -> list[Segment]:
    """Returns the journals of a table, sorted, whether or not their part exists."""
    return _segments(root / JOURNAL / table, table, ".zst")


def first_free_segment(root: Path, table: str, writer: str) -> Segment:
    """Returns the segment after all that a writer of this name left in a table."""
    taken = [
        segment.seq
        for segment in part_segments(root, table) + journal_segments(root, table)
        if segment.writer == writer
    ]
    return Segment(table, writer, max(taken, default=-1) + 1)


def unfinished_parts(root: Path, table: str) -> list[tuple[str, Path]]:
    """Returns the parts of a table that are being written, or never were finished, each with its writer."""
    folder = root / table
    if not folder.is_dir():
        return []
    matches = ((_UNFINISHED_PART.fullmatch(path.name), path) for path in folder.iterdir())
    return [(match["writer"], path) for match, path in matches if match]


def _segments(folder: Path, table: str, suffix: str) -> list[Segment]:
    if not folder.is_dir():
        return []
    found = (Segment.of(table, path) for path in folder.iterdir() if path.suffix == suffix)
    return sorted(segment for segment in found if segment is not None)


def lease_path(root: Path, writer: str) -> Path:
    """Returns the file that a writer holds locked while it lives."""
    return root / JOURNAL / f"{writer}.lease"
