"""Names of files inside a trace directory."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

MANIFEST = "manifest.json"
JOURNAL = "journal"
EMPTY_WRITER = "empty"
COMPACTOR = "compact"
# Of the folder of a replay in the making, which knows its parts by their numbers.
PARTIAL_SUFFIX = ".partial"

# More parts than one writer makes while a directory is listed.
_RECENT = 64

_WRITER = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_FILE = re.compile(rf"(?P<writer>{_WRITER})-(?P<seq>[0-9]{{6,}})(?:\.parquet|\.arrows\.zst)")
_UNFINISHED_PART = re.compile(rf"\.(?P<writer>{_WRITER})-[0-9]{{6,}}\.parquet\.[^/]+")
_COMPACTED = re.compile(rf"{COMPACTOR}-(?P<num_buckets>[0-9]{{4,}})-(?P<bucket>[0-9]{{4,}})")


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


@dataclass(frozen=True, order=True)
class Bucket:
    """What a compacted part holds: the rows of the requests of one of `num_buckets` buckets."""

    num_buckets: int
    bucket: int

    @property
    def writer(self) -> str:
        """The writer that its parts are named by."""
        return f"{COMPACTOR}-{self.num_buckets:04d}-{self.bucket:04d}"

    @classmethod
    def of(cls, segment: Segment) -> Bucket | None:
        """Returns the bucket that a part was compacted into, or None for a part that no compaction made."""
        match = _COMPACTED.fullmatch(segment.writer)
        return cls(int(match["num_buckets"]), int(match["bucket"])) if match else None


def is_writer_name(name: str) -> bool:
    """Tells whether a writer may be called so."""
    taken = name in (EMPTY_WRITER, COMPACTOR) or name.startswith(f"{COMPACTOR}-")
    return re.fullmatch(_WRITER, name) is not None and not taken


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


def unfinished_parts(root: Path, table: str) -> list[tuple[str, Path]]:
    """Returns the parts of a table that are being written, or never were finished, each with its writer."""
    folder = root / table
    if not folder.is_dir():
        return []
    matches = ((_UNFINISHED_PART.fullmatch(path.name), path) for path in folder.iterdir())
    return [(match["writer"], path) for match, path in matches if match]


def is_unfinished_part(name: str) -> bool:
    """Tells whether a file name is that of a part in the making."""
    return _UNFINISHED_PART.fullmatch(name) is not None


def _segments(folder: Path, table: str, suffix: str) -> list[Segment]:
    if not folder.is_dir():
        return []
    found = (Segment.of(table, path) for path in folder.iterdir() if path.suffix == suffix)
    return sorted(segment for segment in found if segment is not None)


def lease_path(root: Path, writer: str) -> Path:
    """Returns the file that a writer holds locked while it lives; whoever compacts holds one for all its parts."""
    holder = COMPACTOR if writer.startswith(f"{COMPACTOR}-") else writer
    return root / JOURNAL / f"{holder}.lease"


def intent_path(root: Path, table: str) -> Path:
    """Returns the file that stands while a compaction of a table is in force and its files are not yet in place."""
    return root / JOURNAL / table / "compaction.json"


def unfinished_intent_path(root: Path, table: str) -> Path:
    """Returns where that file is written aside."""
    return root / JOURNAL / table / ".compaction.json"
