"""The catalogue of metrics: one .sql file a metric, put together into one pass over the pairs.

A file under sql/metrics/catalogue/ bears the metric's name, and holds:

    -- place, unit, meaning, source: what is shown of it; `bases` (raw, processed or both); `interval: none` for maxima;
                  `neutral`: its value for equal traces, or none; `headline: yes` where reports show it unasked;
                  `impact`, where `explain` predicts it: distance (of finite d), mismatch (of rho), ratio (of what a
                  loss clips) or correction (of what a rollout correction truncates or masks). Of such a metric, sums
                  over tokens may use d, rho, k3 and advantage only
    -- tokens     sums over a request's tokens, `<aggregate> AS <name>` a line. Columns, all double: d (log ratio), rho
                  (its exp), k3 (rho - 1 - d), k3r (that of -d), a (logprob in A), pa (its exp), dp (p_B - p_A),
                  advantage; and same (equal first candidates). All but the last two are null where d is
    -- sequences  terms of one request, from its sums
    -- value      the figure, from the totals; `num`, `d_sum`, `d_min`, `d_max`, `num_sequences` are always there
    -- largest    the largest single term of a mean
    -- count      the total that num_tokens shows, `num` by default

Names that end in _min and _max are combined by min and max over requests, all others are added up. Files may share a
sum, under one name and with one definition.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

BASES = ("raw", "processed")
# What the template of sums takes of a trainer's columns. Where there are none, nothing is read, joined or summed for
# them: a tenth of the time.
TRAINED: Mapping[str, str] = {
    "advantage": "coalesce(a_advantage, b_advantage)::DOUBLE",
    "kept": "coalesce(a_loss_mask, b_loss_mask, true)",
}
UNTRAINED: Mapping[str, str] = {"advantage": "NULL::DOUBLE", "kept": "true"}

# Names that the template sums itself.
_CORE = {"num": "count(d)", "d_sum": "sum(d)", "d_min": "min(d)", "d_max": "max(d)"}
_SECTIONS = ("tokens", "sequences", "value", "largest", "count")
_KEY = re.compile(r"-- (\w+)(?:: (.*))?$")
_TERM = re.compile(r"(.+) AS (\w+)$")


@dataclass(frozen=True)
class Metric:
    """One figure of the catalogue.

    Attributes:
        name: as the field uses it.
        place: where it stands among the others.
        unit: nat, ratio, share, probability or correlation.
        meaning: its definition, where d is the log ratio B - A and rho = exp(d).
        source: who computes it, and its name there.
        bases: raw, processed, or both.
        interval: whether resampling says something about it (not of maxima).
        neutral: its value for two equal traces; None where there is no such value.
        headline: whether a report shows it without being asked for all.
        impact: what `explain` predicts it of: distance, mismatch, ratio or correction; None where it does not.
        tokens: sums over a request's tokens, by name.
        sequences: terms of one request, by name.
        value: the figure, an SQL expression over the totals.
        largest: the largest single term, likewise; None where there is no such thing.
        count: how many tokens it is taken from, likewise.
    """

    name: str
    place: int
    unit: str
    meaning: str
    source: str
    bases: tuple[str, ...]
    interval: bool
    neutral: float | None
    headline: bool
    impact: str | None
    tokens: Mapping[str, str]
    sequences: Mapping[str, str]
    value: str
    largest: str | None
    count: str


@functools.cache
def catalogue() -> tuple[Metric, ...]:
    """Returns all metrics, in the order in which they are shown."""
    folder = resources.files(__package__).joinpath("sql", "metrics", "catalogue")
    files = (file for file in folder.iterdir() if file.name.endswith(".sql"))
    metrics = [read_metric(file.name.removesuffix(".sql"), file.read_text(encoding="utf-8")) for file in files]
    return tuple(sorted(metrics, key=lambda metric: metric.place))


def read_metric(name: str, text: str) -> Metric:
    """Returns the metric that a file defines.

    Raises:
        ValueError: the file is not as the module's docstring says; names the line.
    """
    keys: dict[str, str] = {}
    sections: dict[str, list[str]] = {section: [] for section in _SECTIONS}
    section: list[str] | None = None
    for line in text.splitlines():
        found = _KEY.match(line)
        if found is None and section is not None:
            section.append(line)
        elif found and found[1] in sections and found[2] is None:
            section = sections[found[1]]
        elif found and found[2] is not None:
            keys[found[1]] = found[2]
        else:
            raise ValueError(f"metric {name}: '{line}' is neither '-- key: text' nor '-- section' nor in a section")
    return Metric(
        name=name,
        place=int(keys["place"]),
        unit=keys["unit"],
        meaning=keys["meaning"],
        source=keys["source"],
        bases=tuple(keys.get("bases", " ".join(BASES)).split()),
        interval=keys.get("interval") != "none",
        neutral=None if keys["neutral"] == "none" else float(keys["neutral"]),
        headline=keys.get("headline") == "yes",
        impact=keys.get("impact"),
        tokens=_terms(name, sections["tokens"]),
        sequences=_terms(name, sections["sequences"]),
        value="\n".join(sections["value"]),
        largest="\n".join(sections["largest"]) or None,
        count="\n".join(sections["count"]) or "num",
    )


def substitutions(metrics: Iterable[Metric]) -> dict[str, str]:
    """Returns what metrics/sums, metrics/metrics and explain/impact, below sql/, leave open, for these metrics.

    Raises:
        ValueError: two metrics give one name to different sums.
    """
    chosen = tuple(metrics)
    sums = {basis: _merged(m.tokens for m in chosen if basis in m.bases) for basis in BASES}
    columns = ", ".join(_COLUMNS)
    every = _merged([*(m.tokens for m in chosen), _CORE])
    sequences = _merged(m.sequences for m in chosen)
    return {
        "macros": "\n".join(
            f"CREATE MACRO _sum_{name}({columns}) AS {expression};" for name, expression in every.items()
        ),
        "token_sums": _listed(
            f"_sum_{name}({_ARGUMENTS[basis]}) AS {basis}_{name}"
            for basis in BASES
            for name in {**_CORE, **sums[basis]}
        ),
        **{
            f"{basis}_columns": _listed(
                f"{basis}_{name} AS {name}" if name in {**_CORE, **sums[basis]} else f"NULL AS {name}" for name in every
            )
            for basis in BASES
        },
        "over_parts": _listed(_combined(name) for name in every),
        "sequence_terms": _listed(f"{expression} AS {name}" for name, expression in sequences.items()),
        "over_requests": _listed(_combined(name) for name in {**every, **sequences}),
        "over_blocks": _listed(_combined(name, "copies * ") for name in {**every, **sequences}),
        "values": ",\n".join(_value(metric) for metric in chosen),
        "definitions": ",\n".join(_definition(metric) for metric in chosen),
        **_of_impact([metric for metric in chosen if metric.impact is not None]),
    }


def _of_impact(chosen: Sequence[Metric]) -> dict[str, str]:
    sums = _merged([_CORE, *(metric.tokens for metric in chosen)])
    sequences = _merged(metric.sequences for metric in chosen)
    return {
        "impact_token_sums": _listed(f"_sum_{name}({_OF_IMPACT}) AS {name}" for name in sums),
        "impact_over_parts": _listed(_combined(name) for name in sums),
        "impact_sequence_terms": _listed(f"{expression} AS {name}" for name, expression in sequences.items()),
        "impact_over_requests": _listed(_combined(name) for name in {**sums, **sequences}),
        "impact_values": ",\n".join(_value(metric) for metric in chosen),
        "impact_kinds": ", ".join(f"('{metric.name}', '{metric.impact}')" for metric in chosen),
    }


_COLUMNS = ("d", "rho", "k3", "k3r", "a", "pa", "dp", "same", "advantage")

# What the sums of a basis are taken over: columns of the subquery in sums.sql.
_ARGUMENTS = {
    "raw": "d, raw_rho, raw_k3, k3(-d), raw_a, raw_pa, raw_dp, argmax_equal, NULL::DOUBLE",
    "processed": "d_drawn, rho, k3, k3r, drawn_a, pa, dp, argmax_drawn, advantage",
}


# The same for explain, which has no other columns.
_OF_IMPACT = "d, exp(d), k3(d), NULL::DOUBLE, NULL::DOUBLE, NULL::DOUBLE, NULL::DOUBLE, NULL::BOOLEAN, advantage"


def _terms(name: str, lines: Iterable[str]) -> dict[str, str]:
    terms = {}
    for line in lines:
        found = _TERM.match(line)
        if not found:
            raise ValueError(f"metric {name}: '{line}' is not '<expression> AS <name>'")
        terms[found[2]] = found[1]
    return terms


def _merged(definitions: Iterable[Mapping[str, str]]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for definition in definitions:
        for name, expression in definition.items():
            if merged.setdefault(name, expression) != expression:
                raise ValueError(f"two metrics define '{name}': {merged[name]} and {expression}")
    return merged


def _combined(name: str, factor: str = "") -> str:
    if name.endswith(("_min", "_max")):
        return f"{name[-3:]}({name}) AS {name}"
    return f"sum({factor}{name}) AS {name}"


def _listed(expressions: Iterable[str]) -> str:
    return ",\n    ".join(expressions)


def _value(metric: Metric) -> str:
    return (
        f"    {{'name': '{metric.name}', 'value': ({metric.value})::DOUBLE, 'num_tokens': ({metric.count})::BIGINT,"
        f" 'largest': ({metric.largest or 'NULL'})::DOUBLE}}"
    )


def _definition(metric: Metric) -> str:
    texts = ", ".join("'" + text.replace("'", "''") + "'" for text in (metric.unit, metric.meaning, metric.source))
    bases = ", ".join(f"'{basis}'" for basis in metric.bases)
    neutral = "NULL" if metric.neutral is None else f"{metric.neutral}::DOUBLE"
    flags = ", ".join(str(flag).lower() for flag in (metric.interval, metric.headline))
    return f"    ({metric.place}, '{metric.name}', {texts}, [{bases}], {flags}, {neutral})"
