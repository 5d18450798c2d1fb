"""What `inspect` says about one trace, read from footers, journals and a few narrow columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow.compute as pc
from rich.table import Table as TextTable
from rich.text import Text

from tracekit.report.console import new_table, to_bytes
from tracekit.report.identity import identify
from tracekit.report.values import dump_json, plural, printable, to_text
from tracekit.schema import table, table_names
from tracekit.store import Trace

FORMATS = ("table", "json")

_TIMES = {
    "runs": "started_ns",
    "requests": "arrival_ns",
    "steps": "started_ns",
    "outcomes": "finished_ns",
    "events": "time_ns",
}


@dataclass(frozen=True)
class TableSize:
    """One table: its rows, its bytes on disk, and how many of the rows stand in journals only."""

    rows: int
    bytes: int
    journal_rows: int


@dataclass(frozen=True)
class Contents:
    """One trace.

    Attributes:
        trace: the trace.
        runs: rows of `runs`.
        tables: sizes by table.
        rows_dropped: token rows that the recorder missed, as its events say.
        failures: what else its events say that went wrong, one line each.
        span_ns: first and last time that any table names, in ns since the Unix epoch; None for an empty trace.
    """

    trace: Trace
    runs: list[dict[str, Any]]
    tables: dict[str, TableSize]
    rows_dropped: int
    failures: list[str]
    span_ns: tuple[int, int] | None

    @classmethod
    def of(cls, trace: Trace) -> Contents:
        """Reads what there is to show."""
        tables = {
            name: TableSize(trace.num_rows(name), trace.num_bytes(name), trace.snapshot(name).journal_rows.num_rows)
            for name in table_names()
        }
        return cls(trace, trace.read("runs").to_pylist(), tables, _rows_dropped(trace), _failures(trace), _span(trace))

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of the table `tokens` on disk for each of its rows; None where it has no row."""
        tokens = self.tables["tokens"]
        return tokens.bytes / tokens.rows if tokens.rows else None

    def to_json(self) -> bytes:
        """Returns the fixed shape of `inspect --format json`.

        One object: `manifest`, `runs` (rows of that table; columns of JSON text as objects), `tables` (name to
        `rows` and `bytes`), `bytes_per_token` (null without tokens) and `rows_dropped`.
        """
        shape = {
            "manifest": asdict(self.trace.manifest),
            "runs": [_parsed(run) for run in self.runs],
            "tables": {name: {"rows": size.rows, "bytes": size.bytes} for name, size in self.tables.items()},
            "bytes_per_token": self.bytes_per_token,
            "rows_dropped": self.rows_dropped,
        }
        return (dump_json(shape, indent=2) + "\n").encode()

    def to_table(self) -> bytes:
        """Returns what people read; losses stand first."""
        return to_bytes(*self._warnings(), self._configuration(), self._sizes(), *self._notes())

    def _warnings(self) -> Iterator[Text]:
        if self.rows_dropped:
            yield Text(f"INCOMPLETE: {plural(self.rows_dropped, 'row')} dropped while recording", style="bold red")
        for run in self.runs:
            if run["disabled_reason"]:
                reason = printable(run["disabled_reason"])
                yield Text(f"NOT RECORDED by writer {run['writer']}: {reason}", style="bold red")

        for failure in self.failures:
            yield Text(failure, style="bold red")

    def _configuration(self) -> TextTable:
        found = new_table()
        found.show_header = False
        found.add_column()
        found.add_column(overflow="fold")
        manifest = self.trace.manifest
        properties = dict(identify(self.trace, self.runs).properties)
        properties["trace_id"] = manifest.trace_id
        properties["parent"] = manifest.parent or "-"
        properties["format"] = f"{manifest.format_version}, by {manifest.created_by}"
        properties["runs"] = f"{len({run['run_id'] for run in self.runs})} ({plural(len(self.runs), 'writer')})"
        properties["time"] = _span_text(self.span_ns)
        for name, value in properties.items():
            found.add_row(name, printable(value))
        return found

    def _sizes(self) -> TextTable:
        found = new_table()
        found.add_column("table")
        for name in ("rows", "bytes"):
            found.add_column(name, justify="right")
        for name, size in self.tables.items():
            found.add_row(name, f"{size.rows:,}", f"{size.bytes:,}")
        rows, num_bytes = (sum(getattr(size, key) for size in self.tables.values()) for key in ("rows", "bytes"))
        found.add_section()
        found.add_row("all", f"{rows:,}", f"{num_bytes:,}")
        return found

    def _notes(self) -> Iterator[Text]:
        if self.bytes_per_token is not None:
            yield Text(f"{to_text(round(self.bytes_per_token, 1))} bytes a token (table tokens)")
        pending = sum(size.journal_rows for size in self.tables.values())
        if pending:
            text = f"{plural(pending, 'row')} in journals: still being recorded, or `tracekit recover` makes them parts"
            yield Text(text)


def _parsed(run: dict[str, Any]) -> dict[str, Any]:
    return {name: _object(value) if table("runs").column(name).type == "json" else value for name, value in run.items()}


def _object(text: str | None) -> Any:
    try:
        return json.loads(text) if text is not None else None
    except ValueError:
        return text


def _rows_dropped(trace: Trace) -> int:
    events = trace.read("events", ["kind", "attributes"])
    dropped = events.filter(pc.equal(events.column("kind"), "rows_dropped")).column("attributes").to_pylist()
    return sum(_num_rows(_object(attributes)) for attributes in dropped)


def _failures(trace: Trace) -> list[str]:
    events = trace.read("events", ["kind", "attributes"]).to_pylist()
    disabled = [_object(row["attributes"]) for row in events if row["kind"] == "recorder_disabled"]
    errors = [_object(row["attributes"]) for row in events if row["kind"] == "recorder_error"]
    lines = [f"RECORDER DISABLED: {_told(attributes, 'reason')}" for attributes in disabled]
    if errors:
        first = f"{_told(errors[0], 'where')}: {_told(errors[0], 'error')}"
        lines.append(f"{plural(len(errors), 'failure')} of the recorder, the first in {first}")
    return lines


def _told(attributes: Any, name: str) -> str:
    return printable(str(attributes.get(name, "-"))) if isinstance(attributes, dict) else "-"


def _num_rows(attributes: Any) -> int:
    num = attributes.get("num_rows") if isinstance(attributes, dict) else None
    return num if isinstance(num, int) else 0


def _span(trace: Trace) -> tuple[int, int] | None:
    bounds: list[int] = []
    for name, column in _TIMES.items():
        found: dict[str, int | None] = pc.min_max(trace.read(name, [column]).column(0)).as_py()
        bounds += [value for value in found.values() if value is not None]
    return (min(bounds), max(bounds)) if bounds else None


def _span_text(span_ns: Sequence[int] | None) -> str:
    if span_ns is None:
        return "-"
    first, last = (datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S") for time_ns in span_ns)
    return f"{first} to {last} UTC ({(span_ns[1] - span_ns[0]) / 1e9:.1f} s)"
