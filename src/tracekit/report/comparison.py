"""What `diff` says about two traces, gathered once, and written for people and for programs."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tracekit.analysis import Alignment, Session
from tracekit.report.console import new_table, to_bytes
from tracekit.report.identity import Identity, identify
from tracekit.report.values import dump_json, plural, to_csv, to_text

FORMATS = ("table", "json", "csv")

_NUM_SHOWN = 10
_METHODS = {
    "request_id": "request id",
    "external_id": "external id and sample index",
    "prompt": "prompt and order of arrival",
}
_METRIC_COLUMNS = ("basis", "name", "value", "num_tokens", "descriptive")


@dataclass(frozen=True)
class Comparison:
    """Two traces, compared.

    Attributes:
        a, b: what the traces are.
        alignment: how their requests were paired.
        num_pairs: rows of `pairs`.
        num_excluded: pairs whose token B's truncation excludes, so that d_processed is -inf.
        metrics: rows of `metrics`.
        divergence: the one row that sums up `first_divergence`.
        diverged: the first requests that diverge, the earliest first.
    """

    a: Identity
    b: Identity
    alignment: Alignment
    num_pairs: int
    num_excluded: int
    metrics: list[dict[str, Any]]
    divergence: dict[str, Any]
    diverged: list[dict[str, Any]]

    @classmethod
    def of(cls, session: Session) -> Comparison:
        """Asks a session over two traces all that a comparison shows."""
        if session.b is None or session.alignment is None:
            raise ValueError("a comparison needs two traces")
        counts = "SELECT count(*), count_if(d_processed = '-inf'::DOUBLE) FROM pairs"
        num_pairs, num_excluded = session.sql(counts).rows()[0]
        earliest = "FROM first_divergence WHERE kind IS NOT NULL ORDER BY output_index, request_id LIMIT $1"
        return cls(
            a=identify(session.a, session.sql("FROM a.runs").dicts()),
            b=identify(session.b, session.sql("FROM b.runs").dicts()),
            alignment=session.alignment,
            num_pairs=num_pairs,
            num_excluded=num_excluded,
            metrics=session.sql("FROM metrics").dicts(),
            divergence=session.sql("FROM _divergence_summary").dicts()[0],
            diverged=session.sql(earliest, [_NUM_SHOWN]).dicts(),
        )

    def to_json(self) -> bytes:
        """Returns the fixed shape of `diff --format json`.

        One object: `num_requests` (aligned ones), `num_pairs`, `first_divergence` (`num_token`, `num_argmax` and
        `num_none` count requests by kind; `earliest_output_index` and `median_output_index` are null where nothing
        diverges), and `metrics` with the objects `raw` and `processed`, each from a metric's name to `value` and
        `num_tokens`. A value that is no finite number is the string "inf", "-inf" or "nan"; null is no value.
        """
        metrics: dict[str, dict[str, Any]] = {"raw": {}, "processed": {}}
        for row in self.metrics:
            metrics[row["basis"]][row["name"]] = {"value": row["value"], "num_tokens": row["num_tokens"]}
        shape = {
            "num_requests": self.alignment.num_matched,
            "num_pairs": self.num_pairs,
            "first_divergence": self.divergence,
            "metrics": metrics,
        }
        return (dump_json(shape, indent=2) + "\n").encode()

    def to_csv(self) -> bytes:
        """Returns the metrics, one a line, under a header."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_METRIC_COLUMNS)
        for row in self.metrics:
            writer.writerow([to_csv(row[name]) for name in _METRIC_COLUMNS])
        return text.getvalue().encode()

    def to_table(self) -> bytes:
        """Returns what people read."""
        parts: list[RenderableType] = [
            self._identities(),
            Text(self._aligned()),
            self._metrics(),
            *([Text(self._excluded())] if self.num_excluded else []),
            Text(self._summary()),
        ]
        if self.diverged:
            parts.append(self._diverged())
        return to_bytes(*parts)

    def _identities(self) -> Table:
        table = new_table()
        for name in ("", "A", "B"):
            table.add_column(name, overflow="fold")
        names = list(dict.fromkeys([*self.a.properties, *self.b.properties]))
        for name in names:
            a, b = self.a.properties.get(name), self.b.properties.get(name)
            table.add_row(name, to_text(a), to_text(b), style=None if a == b else "bold")
        return table

    def _aligned(self) -> str:
        alignment = self.alignment
        text = f"{plural(alignment.num_matched, 'request')} aligned by {_METHODS[alignment.method]}"
        text += f", {plural(self.num_pairs, 'pair')}"
        for num, side in ((alignment.num_only_a, "A"), (alignment.num_only_b, "B")):
            text += f"; {num:,} only in {side}" if num else ""
        return text

    def _metrics(self) -> Table:
        table = new_table()
        table.add_column("metric")
        marks = {}
        for basis in ("raw", "processed"):
            marks[basis] = any(row["descriptive"] for row in self.metrics if row["basis"] == basis)
            table.add_column(basis + (" (descriptive)" if marks[basis] else ""), justify="right")
            table.add_column("tokens", justify="right", style="dim")
        values = {(row["basis"], row["name"]): row for row in self.metrics}
        for name in dict.fromkeys(row["name"] for row in self.metrics):
            cells = [values[basis, name] for basis in ("raw", "processed")]
            table.add_row(name, *(to_text(cell[key]) for cell in cells for key in ("value", "num_tokens")))
        return table

    def _excluded(self) -> str:
        tokens = plural(self.num_excluded, "token")
        return f"Processed d is -inf at {tokens}: B's top-p, top-k or min-p excludes what A drew"

    def _summary(self) -> str:
        found = self.divergence
        num = found["num_token"] + found["num_argmax"]
        if not num:
            return f"No request diverges ({found['num_none']:,} compared)"
        return (
            f"First divergence: {plural(found['num_token'], 'request')} by token, {found['num_argmax']:,} by argmax, "
            f"{found['num_none']:,} never; earliest at output token {found['earliest_output_index']}, "
            f"median {to_text(found['median_output_index'])}"
        )

    def _diverged(self) -> Table:
        table = new_table()
        for name in ("request", "output index", "kind", "token A", "token B", "margin A", "margin B"):
            table.add_column(name, justify="left" if name in ("request", "kind") else "right")
        for row in self.diverged:
            ids = "token_id" if row["kind"] == "token" else "argmax_token_id"
            names = ("request_id", "output_index", "kind", f"a_{ids}", f"b_{ids}", "a_top1_margin", "b_top1_margin")
            table.add_row(*(to_text(row[name]) for name in names))
        return table
