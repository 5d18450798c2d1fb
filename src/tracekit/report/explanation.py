"""What `explain` says: a table for people, Markdown and JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from tracekit.analysis.explain import Explanation, Finding
from tracekit.analysis.explain.impact import Impact
from tracekit.analysis.explain.settings import SettingDifference
from tracekit.errors import ConfigError, nearest
from tracekit.report import impact, settings
from tracekit.report.console import new_table, to_bytes
from tracekit.report.formats.md import line, rule
from tracekit.report.values import dump_json, plural, to_text

_COLUMNS = ("cause", "verdict", "k2", "k3", "abs(d)", "p", "tokens", "estimated")
_IMPACT = "What would change if they were fixed"
_SETTINGS = "What differs between the configurations"
_MOST_VALUES = 6
_SOURCES = {
    "measured": "as repeats were measured to differ",
    "model": "as one bf16 step of the logits would make; measure it with --null, a repeat of A",
    "none": "no noise is known: neither side is known to have bf16 logits; measure it with --null, a repeat of A",
}
# What is said of tokens that no two sound engines differ on.
_EXCLUDED = {
    "sampler": "values that the token's own request rules out; hold the sampler against --backend head, record without "
    "drafts",
    "not_a_number": "a side reports NaN; look at its raw logits, and at its sampler",
}


@dataclass(frozen=True)
class Report:
    """What is said of two traces: causes, what fixing them would change, and how the configurations differ."""

    explanation: Explanation
    impacts: Sequence[Impact]
    differences: Sequence[SettingDifference]

    def to_table(self) -> bytes:
        """Returns what people read."""
        table = new_table()
        for name in _COLUMNS:
            table.add_column(name, justify="left" if name in ("cause", "verdict", "estimated") else "right")
        for row in _rows(self.explanation):
            table.add_row(*row)
        parts: list[RenderableType] = [*map(Text, _heading(self.explanation)), table]
        parts += map(Text, _notes(self.explanation))
        if self.explanation.findings:
            parts += [Text(f"\n{_IMPACT}"), impact.to_table(self.impacts), *map(Text, impact.notes(self.impacts))]
        if self.differences:
            shown = settings.to_table(self.differences)
            parts += [Text(f"\n{_SETTINGS}"), *([shown] if shown.row_count else [])]
            parts += map(Text, settings.notes(self.differences))
        return to_bytes(*parts)

    def to_markdown(self) -> bytes:
        """Returns the same in Markdown, with each finding's SQL."""
        rows = [line([cell.replace("|", "\\|") for cell in row]) for row in _rows(self.explanation)]
        table = line(_COLUMNS) + rule([False] * len(_COLUMNS)) + "".join(rows)
        notes = "".join(f"- {note}\n" for note in _notes(self.explanation))
        parts = ["\n".join(_heading(self.explanation)) + "\n", table, notes]
        if self.explanation.findings:
            parts += [f"## {_IMPACT}\n", impact.to_markdown(self.impacts)]
            parts.append("".join(f"- {note}\n" for note in impact.notes(self.impacts)))
        if self.differences:
            parts += [f"## {_SETTINGS}\n", settings.to_markdown(self.differences)]
        for finding in self.explanation.findings:
            parts.append(f"## {finding.cause}: {finding.title}\n\n```sql\n{finding.sql}\n```\n")
        return "\n".join(part for part in parts if part).encode()

    def to_json(self) -> bytes:
        """Returns one object.

        `findings` and `within_noise` are lists of objects with the attributes of `Finding`; `undecided` gives reasons
        by cause; `residual` and `size` give k2, k3 and abs; `noise` has `mean_square` and `source`; `forks` counts
        requests, `excluded` and `labels` count tokens by cause; `num_tokens`, `num_requests` and `num_infinite` are
        counts. `impacts` and `setting_differences` are lists of objects.
        """
        explanation = self.explanation
        document = {
            "findings": [vars(finding) for finding in explanation.findings],
            "within_noise": [vars(finding) for finding in explanation.within_noise],
            "undecided": explanation.undecided,
            "residual": explanation.residual,
            "size": explanation.size,
            "noise": vars(explanation.noise),
            "num_tokens": explanation.num_tokens,
            "num_requests": explanation.num_requests,
            "num_infinite": explanation.num_infinite,
            "excluded": explanation.excluded,
            "forks": explanation.forks,
            "labels": explanation.labels,
            "impacts": impact.to_rows(self.impacts),
            "setting_differences": settings.to_rows(self.differences),
        }
        return (dump_json(document, indent=2) + "\n").encode()


def evidence_of(explanation: Explanation, cause: str) -> bytes:
    """Returns the SQL of a finding's evidence.

    Raises:
        ConfigError: no such cause was found.
    """
    known = {finding.cause: finding for finding in (*explanation.findings, *explanation.within_noise)}
    if cause not in known:
        found = ", ".join(known) or "none"
        raise ConfigError(f"'{cause}' is none of the causes found ({found}){nearest(cause, known)}")
    return (known[cause].sql + ";\n").encode()


def _heading(explanation: Explanation) -> list[str]:
    size = explanation.size
    lines = [
        f"{plural(explanation.num_tokens, 'token')} of {plural(explanation.num_requests, 'request')} compared: "
        f"k2 {to_text(size['k2'])}, k3 {to_text(size['k3'])}, abs(d) {to_text(size['abs'])} nat a token"
    ]
    if explanation.num_infinite:
        excluded = ", ".join(f"{cause} {num:,}" for cause, num in explanation.excluded.items())
        lines.append(
            f"{plural(explanation.num_infinite, 'token')} in no share, for d is not finite (FROM excluded_tokens): "
            f"{excluded}"
        )
        lines += [f"{cause}: {told}" for cause, told in _EXCLUDED.items() if cause in explanation.excluded]
    return lines


def _rows(explanation: Explanation) -> list[list[str]]:
    rows = [_row(finding, finding.shares) for finding in explanation.findings]
    left = [_share(explanation.residual[name]) for name in ("k2", "k3", "abs")]
    rows.append(["not explained", "", *left, "", "", ""])
    return rows + [_row(finding, None) for finding in explanation.within_noise]


def _row(finding: Finding, shares: dict[str, float] | None) -> list[str]:
    cells = ["", "", ""] if shares is None else [_share(shares[name]) for name in ("k2", "k3", "abs")]
    return [
        f"{finding.cause}: {finding.title}",
        "within noise" if shares is None else finding.verdict,
        *cells,
        to_text(finding.p_value),
        f"{finding.num_tokens:,}",
        ", ".join(f"{name} {_value(value)}" for name, value in finding.parameters.items()),
    ]


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        told = [_value(one) for one in value[:_MOST_VALUES]] + (["…"] if len(value) > _MOST_VALUES else [])
        return "[" + ", ".join(told) + "]"
    return to_text(value)


def _notes(explanation: Explanation) -> list[str]:
    notes = []
    for finding in explanation.findings:
        difference = finding.shares_reversed["k2"] - finding.shares["k2"]
        if abs(difference) >= 0.01:
            notes.append(
                f"{finding.cause} interacts with others: {_share(finding.shares_reversed['k2'])} of k2 where causes "
                "are taken away in the opposite order"
            )
        if finding.rivals:
            notes.append(f"{finding.cause} may be {' or '.join(finding.rivals)}: the data cannot tell them apart")
        notes.append(f"{finding.cause}: to settle it, {finding.next_step}" if finding.next_step else "")
    for reason in dict.fromkeys(explanation.undecided.values()):
        of = [cause for cause, said in explanation.undecided.items() if said == reason]
        notes.append(f"{', '.join(of)} cannot be told: {reason}")
    if explanation.forks:
        forks = ", ".join(f"{cause} {num:,}" for cause, num in explanation.forks.items())
        notes.append(f"Requests that go on with other tokens, by cause (FROM fork_causes): {forks}")
    source = explanation.noise.source
    level = "" if source == "none" else f"Noise: k2 {to_text(explanation.noise.mean_square / 2)}, "
    notes.append(level + _SOURCES[source])
    return [note for note in notes if note]
