"""What differs between two configurations: a table for people, Markdown, and rows for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from tracekit.analysis.explain.settings import SettingDifference
from tracekit.report.console import new_table
from tracekit.report.formats.md import line, rule
from tracekit.report.values import plural, printable

_HEAD = ("setting", "A", "B", "matters for", "accounts for")
_LONGEST = 60
# What people read unasked: what may change logprobs.
_ASIDE = ("unknown", "draws", "recorder")
_SWITCH = {"true": "on", "false": "off"}
_UNKNOWN = "?"


def to_table(differences: Sequence[SettingDifference], *, everything: bool = False) -> Table:
    """Returns the settings that differ, with what the causes about them account for.

    Args:
        differences: what differs.
        everything: also what one side does not tell, and what is not known to matter for logprobs.
    """
    table = new_table()
    for name in _HEAD:
        table.add_column(name, overflow="fold")
    for each in differences:
        if everything or _is_shown(each):
            table.add_row(*_cells(each), style="bold" if each.causes else None if each.known else "dim")
    return table


def to_markdown(differences: Sequence[SettingDifference], *, everything: bool = False) -> str:
    """Returns the same as a table in Markdown."""
    rows = [_cells(each) for each in differences if everything or _is_shown(each)]
    return "".join([line(_HEAD), rule([False] * len(_HEAD)), *map(line, rows)])


def notes(differences: Sequence[SettingDifference]) -> list[str]:
    """Returns what the table leaves out where not everything is asked for."""
    hidden = [each for each in differences if not _is_shown(each)]
    untold = [each.setting for each in hidden if not each.known]
    found = []
    if untold:
        names = ", ".join(untold[:6]) + (", …" if len(untold) > 6 else "")
        found.append(f"Told by one side only: {plural(len(untold), 'setting')} ({names})")
    if len(hidden) > len(untold):
        found.append(f"Not known to matter for logprobs: {plural(len(hidden) - len(untold), 'difference')} more")
    return [*found, "All of them: FROM setting_differences"] if found else []


def to_rows(differences: Sequence[SettingDifference]) -> list[dict[str, Any]]:
    """Returns one object a difference, with the attributes of `SettingDifference`, as JSON shows them."""
    return [{**asdict(each), "causes": [asdict(cause) for cause in each.causes]} for each in differences]


def _is_shown(difference: SettingDifference) -> bool:
    return bool(difference.causes) or (difference.known and difference.relevance not in _ASIDE)


def _cells(difference: SettingDifference) -> list[str]:
    return [
        printable(difference.setting),
        _value(difference.a_value),
        _value(difference.b_value),
        difference.relevance,
        ", ".join(f"{cause.cause} {_percent(cause.shares['k2'])} of k2" for cause in difference.causes),
    ]


def _value(text: str | None) -> str:
    if text is None:
        return _UNKNOWN
    shown = ", ".join(_SWITCH.get(one, one) for one in text.split(", "))
    return printable(shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…")


def _percent(share: float) -> str:
    """Returns a share with one digit; one that would be rounded to nothing is told to be small."""
    if share and abs(share) < 0.0005:
        return "under 0.1%"
    return f"{share:.1%}"
