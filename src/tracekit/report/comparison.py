"""What `diff` says about two traces, gathered once, and written for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, BinaryIO

import pyarrow as pa
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tracekit.analysis import Alignment, Session, Unaligned
from tracekit.analysis.figures import MEASURED, Figure, figures
from tracekit.report.console import new_table, to_bytes
from tracekit.report.formats.base import TableRows, writer
from tracekit.report.identity import Identity, identify
from tracekit.report.values import dump_json, plural, to_text

_NUM_SHOWN = 10
_METHODS = {
    "request_id": "request id",
    "external_id": "external id and sample index",
    "prompt": "prompt and order of arrival",
}
_COLUMNS = (
    "basis",
    "name",
    "value",
    "low",
    "high",
    "reliable",
    "largest",
    "num_tokens",
    "num_sequences",
    "floor",
    "floor_source",
    "within_floor",
    "descriptive",
)
_TYPES = {
    **dict.fromkeys(("basis", "name", "floor_source"), pa.string()),
    **dict.fromkeys(("num_tokens", "num_sequences"), pa.int64()),
    **dict.fromkeys(("reliable", "within_floor", "descriptive"), pa.bool_()),
}


@dataclass(frozen=True)
class Comparison:
    """Two traces, compared.

    Attributes:
        a, b: what the traces are.
        alignment: how their requests were paired.
        unaligned: requests that no pair stands for, by reason.
        num_pairs: rows of `pairs`.
        num_excluded: tokens that B's truncation excludes, so that d_processed is -inf.
        figures: every metric, with its interval and noise floor.
        divergence: the one row that sums up `first_divergence`.
        diverged: the first requests that diverge, the earliest first.
    """

    a: Identity
    b: Identity
    alignment: Alignment
    unaligned: Sequence[Unaligned]
    num_pairs: int
    num_excluded: int
    figures: Sequence[Figure]
    divergence: dict[str, Any]
    diverged: list[dict[str, Any]]

    @classmethod
    def of(cls, session: Session, nulls: Sequence[Session] = ()) -> Comparison:
        """Asks a session over two traces all that a comparison shows.

        Args:
            session: the comparison.
            nulls: comparisons between repeats of A's run, which measure the noise floor.
        """
        if session.b is None or session.alignment is None:
            raise ValueError("a comparison needs two traces")
        counts = "SELECT coalesce(sum(num_pairs), 0), coalesce(sum(processed_num_excluded), 0) FROM _parts"
        num_pairs, num_excluded = session.sql(counts).rows()[0]
        earliest = (
            "SELECT a_request_id FROM _divergence WHERE kind IS NOT NULL ORDER BY output_index, a_request_id LIMIT $1"
        )
        shown = [request_id for (request_id,) in session.sql(earliest, [_NUM_SHOWN]).rows()]
        diverged = "FROM first_divergence WHERE list_contains($1, request_id) ORDER BY output_index, request_id"
        return cls(
            a=identify(session.a, session.sql("FROM a.runs").dicts()),
            b=identify(session.b, session.sql("FROM b.runs").dicts()),
            alignment=session.alignment,
            unaligned=session.unaligned(),
            num_pairs=int(num_pairs),
            num_excluded=int(num_excluded),
            figures=figures(session, nulls),
            divergence=session.sql("FROM _divergence_summary").dicts()[0],
            diverged=session.sql(diverged, [shown]).dicts() if shown else [],
        )

    def to_json(self) -> bytes:
        """Returns the fixed shape of `diff --format json`.

        One object: `num_requests` (aligned ones), `num_pairs`, `first_divergence` (`num_token`, `num_argmax` and
        `num_none` count requests by kind; `earliest_output_index` and `median_output_index` are null where nothing
        diverges), and `metrics` with the objects `raw` and `processed`, each from a metric's name to an object with
        `value`, `num_tokens` and the rest of what is known of it; `requests` is such an object of shares of requests. A
        value that is no finite number is the string "inf", "-inf" or "nan"; null is no value. `unaligned` lists
        requests without a counterpart by reason.
        """
        metrics: dict[str, dict[str, Any]] = {"raw": {}, "processed": {}, "requests": {}}
        for figure in self.figures:
            row = _row(figure)
            metrics[figure.basis][figure.name] = {key: row[key] for key in _COLUMNS if key not in ("basis", "name")}
        document = {
            "num_requests": self.alignment.num_matched,
            "num_pairs": self.num_pairs,
            "first_divergence": self.divergence,
            "metrics": {basis: metrics[basis] for basis in ("raw", "processed")},
            "requests": metrics["requests"],
            "unaligned": [vars(reason) for reason in self.unaligned],
        }
        return (dump_json(document, indent=2) + "\n").encode()

    def write_metrics(self, output_format: str, sink: BinaryIO) -> None:
        """Writes the metrics, one a row, in a format of `report.formats`.

        Raises:
            ConfigError: there is no such format.
        """
        rows = [_row(figure) for figure in self.figures]
        columns = {name: pa.array([row[name] for row in rows], _TYPES.get(name, pa.float64())) for name in _COLUMNS}
        writer(output_format)(TableRows(pa.table(columns)), sink)

    def to_table(self, *, everything: bool = False) -> bytes:
        """Returns what people read.

        Args:
            everything: all metrics, not only the headline ones.
        """
        parts: list[RenderableType] = [
            self._identities(),
            Text(self._aligned()),
            *(Text(_lonely(reason)) for reason in self.unaligned),
            self._metrics(everything=everything),
            *(Text(line) for line in self._notes(everything=everything)),
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

    def _metrics(self, *, everything: bool) -> Table:
        table = new_table()
        table.add_column("metric")
        for basis in ("raw", "processed"):
            marked = any(figure.descriptive for figure in self.figures if figure.basis == basis)
            table.add_column(basis + (" (descriptive)" if marked else ""), justify="right")
            table.add_column("95% interval", justify="right", style="dim")
            table.add_column("floor", justify="right", style="dim")
        shown = {(figure.basis, figure.name): figure for figure in self.figures if figure.headline or everything}
        for name in dict.fromkeys(name for basis, name in shown if basis != "requests"):
            found = [shown.get((basis, name)) for basis in ("raw", "processed")]
            if any(figure is not None and figure.value is not None for figure in found) or everything:
                table.add_row(name, *(cell for figure in found for cell in _cells(figure)))
        return table

    def _notes(self, *, everything: bool) -> list[str]:
        shown = [figure for figure in self.figures if figure.headline or everything]
        tokens = {figure.basis: max(figure.num_tokens, 0) for figure in self.figures if figure.name == "kl"}
        notes = [f"From {tokens['raw']:,} tokens raw and {tokens['processed']:,} processed"]
        if any(figure.reliable is False and figure.value is not None for figure in shown):
            notes.append("?: too few requests, or a figure that its tail carries: the interval covers less than 95%")
        if any(figure.within_floor for figure in shown):
            notes.append("~: within the noise floor" + ("" if self._is_measured() else ", as one bf16 step models it"))
        if any(figure.floor is not None for figure in shown) and not self._is_measured():
            notes.append("The floor is a model (one bf16 step of the logits): measure it with --null, a repeat of A")
        if self.num_excluded:
            excluded = plural(self.num_excluded, "token")
            notes.append(f"Processed d is -inf at {excluded}: B's top-p, top-k or min-p excludes what A drew")
        for basis, column in (("raw", "d"), ("processed", "d_processed")):
            if any(figure.basis == basis and figure.value is not None and isnan(figure.value) for figure in shown):
                notes.append(f"nan: a side has NaN for a {basis} logprob; FROM pairs WHERE isnan({column}) lists them")
        return notes

    def _is_measured(self) -> bool:
        return any(figure.floor_source == MEASURED for figure in self.figures)

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


def _row(figure: Figure) -> dict[str, Any]:
    return {name: getattr(figure, name) for name in _COLUMNS}


def _cells(figure: Figure | None) -> tuple[str, str, str]:
    if figure is None:
        return ("", "", "")
    value = to_text(figure.value) + (" ~" if figure.within_floor else "")
    interval = ""
    if figure.low is not None and figure.high is not None:
        interval = f"{figure.low:.3g} to {figure.high:.3g}" + ("" if figure.reliable else " ?")
    return (value, interval, "" if figure.floor is None else f"{figure.floor:.3g}")


def _lonely(reason: Unaligned) -> str:
    return (
        f"{plural(reason.num_requests, 'request')} of {reason.side} without a row in pairs ({reason.reason}), first "
        f"'{reason.request_id}': {reason.detail}"
    )
