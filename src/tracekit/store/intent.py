"""The intent of a compaction: from the moment it stands, its new parts count and those they replace do not.

It is one small file that appears whole. Readers honour it; whoever finds nobody reading brings the files in place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tracekit.errors import TraceFormatError
from tracekit.store.layout import Segment, intent_path, is_unfinished_part, unfinished_intent_path


@dataclass(frozen=True)
class Intent:
    """New parts of one table, and the parts whose rows stand in them.

    Attributes:
        table: the table.
        new: by segment, the name in the table's folder under which its part was written.
        superseded: what it replaces.
    """

    table: str
    new: Mapping[Segment, str]
    superseded: frozenset[Segment]

    @classmethod
    def read(cls, root: Path, table: str) -> Self | None:
        """Returns the intent of a table; None where there is none.

        Raises:
            TraceFormatError: it is not one; names that lead out of the table's folder included.
        """
        path = intent_path(root, table)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise TraceFormatError(f"{path} cannot be read as a compaction's intent ({error}); restore it") from error
        try:
            new = {_segment(table, entry["part"]): _aside(entry["aside"]) for entry in content["new"]}
            return cls(table, new, frozenset(_segment(table, name) for name in content["superseded"]))
        except (KeyError, TypeError, ValueError) as error:
            raise TraceFormatError(
                f"{path} is not a compaction's intent ({type(error).__name__}: {error}); restore the file"
            ) from error

    def commit(self, root: Path) -> None:
        """Puts it into force: the new parts must be on the disk."""
        path = intent_path(root, self.table)
        path.parent.mkdir(exist_ok=True)
        _sync(root / self.table)
        aside = unfinished_intent_path(root, self.table)
        with aside.open("w", encoding="utf-8") as file:
            json.dump(self._as_json(root), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync(path.parent)

    def finish(self, root: Path) -> None:
        """Brings the files in place; nobody may be reading. May be interrupted anywhere, and repeated."""
        folder = root / self.table
        # Named first, removed afterwards: who sees parts only may count rows twice, which shows, but misses none.
        for segment, aside in self.new.items():
            if (folder / aside).exists():
                os.replace(folder / aside, segment.part(root))
        _sync(folder)
        for segment in self.superseded:
            segment.part(root).unlink(missing_ok=True)
        _sync(folder)
        intent_path(root, self.table).unlink(missing_ok=True)

    def part(self, root: Path, segment: Segment) -> Path:
        """Returns where one of the new parts stands now."""
        aside = root / self.table / self.new[segment]
        return aside if aside.exists() else segment.part(root)

    def _as_json(self, root: Path) -> dict[str, Any]:
        return {
            "new": [{"part": segment.part(root).name, "aside": aside} for segment, aside in self.new.items()],
            "superseded": sorted(segment.part(root).name for segment in self.superseded),
        }


def _segment(table: str, name: str) -> Segment:
    # A trace is untrusted data: what is named here may be removed.
    found = Segment.of(table, Path(name))
    if found is None or "/" in name or not name.endswith(".parquet"):
        raise ValueError(f"'{name}' is no part's name")
    return found


def _aside(name: str) -> str:
    if not is_unfinished_part(name):
        raise ValueError(f"'{name}' is no name of a part in the making")
    return name


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
