"""What would change if causes were fixed: a table for people, Markdown, and rows for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from tracekit.analysis.explain.impact import BYPASS, DECOUPLED, MISMATCH, Impact
from tracekit.report.console import new_table
from tracekit.report.formats.md import line, rule
from tracekit.report.values import to_text

_TITLES = {
    MISMATCH: "B against A",
    BYPASS: "bypass mode: current / rollout",
    DECOUPLED: "decoupled mode: current / old, weighted by old / rollout",
}
_ALL = "without all"


def to_table(impacts: Sequence[Impact]) -> Table:
    """Returns metrics by mode, as they are and without each cause."""
    head, *rows = _grid(impacts)
    table = new_table()
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row, style="bold" if len(row) == 1 else None)
    return table


def to_markdown(impacts: Sequence[Impact]) -> str:
    """Returns the same as a table in Markdown."""
    head, *rows = _grid(impacts)
    lines = [line(head), rule(index > 0 for index in range(len(head)))]
    lines += [line([*row, *[""] * (len(head) - len(row))]) for row in rows]
    return "".join(lines)


def notes(impacts: Sequence[Impact]) -> list[str]:
    """Returns what must be known to read the table."""
    found = []
    assumed = {each.mode for each in impacts if each.assumed}
    if BYPASS in assumed and any(each.mode == BYPASS for each in impacts):
        found.append(
            "Bypass mode: no pass of policy 'current' is recorded, so B stands in for it, as at the first update"
        )
    if DECOUPLED in assumed:
        found.append("Decoupled mode: no pass of policy 'old' is recorded, so B stands in for it")
    if impacts and not any(each.mode == BYPASS for each in impacts):
        found.append("No advantages are recorded, so nothing is said of clipping")
    if any(each.descriptive for each in impacts):
        found.append(
            "Some tokens were not drawn at a temperature above 0: the figures describe, and predict no training"
        )
    return found


def to_rows(impacts: Sequence[Impact]) -> list[dict[str, Any]]:
    """Returns one object an impact, with the attributes of `Impact`, as JSON shows them."""
    return [asdict(each) for each in impacts]


def _grid(impacts: Sequence[Impact]) -> Iterator[list[str]]:
    """Yields a head, then for each mode a row with its title alone and its rows."""
    causes = list(dict.fromkeys(each.cause for each in impacts))
    yield ["metric", "now", *(_ALL if cause is None else f"without {cause}" for cause in causes)]
    for mode, title in _TITLES.items():
        of_mode = [each for each in impacts if each.mode == mode]
        found = {(each.name, each.cause): each for each in of_mode}
        names = [name for name in dict.fromkeys(each.name for each in of_mode) if _happens(name, of_mode)]
        if names:
            yield [title]
        for name in names:
            before = next(each.before for each in of_mode if each.name == name)
            yield [name, to_text(before), *(_cell(found.get((name, cause))) for cause in causes)]


def _happens(name: str, impacts: Sequence[Impact]) -> bool:
    """Whether there is anything to show of a metric: nothing is clipped, now or then, says nothing."""
    return any(each.before != 0 or each.after != 0 for each in impacts if each.name == name)


def _cell(impact: Impact | None) -> str:
    if impact is None:
        return ""
    return "same" if impact.after == impact.before else to_text(impact.after)
