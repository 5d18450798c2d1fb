"""Names of files inside a trace directory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
JOURNAL = "journal"
EMPTY_WRITER = "empty"

_FILE = re.compile(r"(?P<writer>[A-Za-z0-9][A-Za-z0-9_-]*)-(?P<seq>\d{6})(?:\.parquet|\.arrows\.zst)")


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


def part_segments(root: Path, table: str) -> list[Segment]:
    """Returns the parts of a table, sorted."""
    return _segments(root / table, table, ".parquet")


def journal_segments(root: Path, table: str) -> list[Segment]:
    """Returns the journals of a table, sorted, whether or not their part exists."""
    return _segments(root / JOURNAL / table, table, ".zst")


def _segments(folder: Path, table: str, suffix: str) -> list[Segment]:
    if not folder.is_dir():
        return []
    found = (Segment.of(table, path) for path in folder.iterdir() if path.suffix == suffix)
    return sorted(segment for segment in found if segment is not None)


def lease_path(root: Path, writer: str) -> Path:
    """Returns the file that a writer holds locked while it lives."""
    return root / JOURNAL / f"{writer}.lease"
