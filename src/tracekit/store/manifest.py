"""The manifest: what a trace is, and the making of an empty one."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tracekit.errors import InputError, NotATraceError, OutputExistsError, TraceFormatError
from tracekit.schema import FORMAT_VERSION, MAJOR, arrow_schema, table_names
from tracekit.store.layout import EMPTY_WRITER, JOURNAL, MANIFEST, Segment
from tracekit.store.parts import write_part
from tracekit.version import __version__

Role = Literal["record", "replay", "trainer"]


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
        format_version: 'MAJOR.MINOR' of the trace format.
        trace_id: identifies the trace; a replay names its parent by it.
        role: where the rows come from.
        parent: trace_id of the trace that this one replays or scores, else None.
        created_by: the program that made the trace.
    """

    format_version: str
    trace_id: str
    role: str
    parent: str | None
    created_by: str

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """Reads the manifest of the trace at `root`.

        Raises:
            NotATraceError: no folder, or no readable manifest in it.
            TraceFormatError: a major version that this release does not know.
        """
        path = root / MANIFEST
        if not root.exists():
            raise NotATraceError(f"{root}: no such trace; give the folder that `tracekit record -o` wrote")
        if not root.is_dir():
            raise NotATraceError(f"{root} is a file, but a trace is a folder with a {MANIFEST}")
        if not path.is_file():
            content = "an empty folder" if not any(root.iterdir()) else f"a folder without {MANIFEST}"
            raise NotATraceError(f"{root} is {content}, not a trace; give the folder that `tracekit record -o` wrote")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise NotATraceError(f"{path} cannot be read as a trace manifest ({error})") from error
        version = content.get("format_version") if isinstance(content, dict) else None
        match = re.fullmatch(r"([0-9]+)\.[0-9]+", version) if isinstance(version, str) else None
        if match is None:
            raise NotATraceError(f"{path} is not a trace manifest: format_version is {version!r}, not like '1.0'")
        major = int(match[1])
        if major != MAJOR:
            raise TraceFormatError(
                f"{root} has trace format {version}, this tracekit {__version__} reads {MAJOR}.x; "
                + ("upgrade tracekit" if major > MAJOR else "read it with an older tracekit")
            )
        for name in ("trace_id", "role"):
            if not isinstance(content.get(name), str):
                raise NotATraceError(f"{path} is not a trace manifest: {name} is missing")
        return cls(**{name: content.get(name) for name in cls.__dataclass_fields__})


def create_trace(root: Path | str, role: Role, *, parent: str | None = None) -> Manifest:
    """Makes an empty trace: a manifest, and a zero-row part for each table.

    Raises:
        OutputExistsError: something is already there.
        InputError: the place cannot be written to.
    """
    root = Path(root)
    taken = OutputExistsError(f"{root} exists already; choose another path or remove it first")
    if os.path.lexists(root):
        raise taken
    manifest = Manifest(FORMAT_VERSION, uuid.uuid4().hex, role, parent, f"tracekit {__version__}")
    # Made aside: another command that appends to it must not find half of it.
    aside = root.parent / f".{manifest.trace_id}"
    try:
        (aside / JOURNAL).mkdir(parents=True)
        for table in table_names():
            (aside / JOURNAL / table).mkdir()
            write_part(arrow_schema(table).empty_table(), Segment(table, EMPTY_WRITER, 0).part(aside))
        (aside / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
        os.rename(aside, root)
    except OSError as error:
        if os.path.lexists(root):
            raise taken from None
        raise InputError(
            f"{root} cannot be made: {error.strerror or error}; make room or choose a path that can be written"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest
