"""What `bisect` says: tables for people and for Markdown, JSON for programs."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from rich.console import RenderableType
from rich.text import Text

from tracekit.bisect.result import MOVES, NOT_RUN, Bisected, FactorFound, Minimised, Planned, Step
from tracekit.bisect.shares import NOTHING, Amounts
from tracekit.report.console import new_table, to_bytes
from tracekit.report.formats import md
from tracekit.report.formats.base import TableRows
from tracekit.report.values import dump_json, plural, printable

_STYLES = {MOVES: "bold", NOT_RUN: "red"}
_SHARES = ("factor", "from", "to", "share of k2", "of k3", "of abs", "interaction", "alone removes", "verdict")
_WAY = "On the way through what was asked for:"
_STEPS = ("replay", "k2 from A", "k2 to B", "left", "trace")
_STAGES = ("from", "to", "share of k2", "of k3", "of abs", "k2 between them")
_LEFT = frozenset(("factor", "from", "to", "verdict", "replay", "trace", "backend", "options", "state"))


def to_table(found: Bisected) -> bytes:
    """Returns the answer as people read it."""
    return to_bytes(
        Text(_heading(found)),
        _table(_SHARES, _share_rows(found)),
        Text(_sentence(found.reason)),
        *([Text(_WAY), _table(_STAGES, _stage_rows(found))] if found.way else []),
        _table(_STEPS, _step_rows(found)),
    )


def to_md(found: Bisected) -> bytes:
    """Returns the same in Markdown."""
    parts = [
        _heading(found).encode(),
        _markdown(_SHARES, _share_rows(found)),
        _sentence(found.reason).encode(),
        *([_WAY.encode(), _markdown(_STAGES, _stage_rows(found))] if found.way else []),
        _markdown(_STEPS, _step_rows(found)),
    ]
    return b"\n\n".join(part.strip() for part in parts) + b"\n"


def to_json(found: Bisected) -> bytes:
    """Returns one object: the fields of `Bisected`, and the interaction of each factor."""
    document = dataclasses.asdict(found)
    for row, factor in zip(document["factors"], found.factors, strict=True):
        row["interaction"] = dataclasses.asdict(factor.interaction)
    return _json(document)


def to_report(found: Bisected, small: Minimised) -> bytes:
    """Returns the page that goes with the reduced traces, in Markdown."""
    of, d = ("processed_", "d_processed") if found.basis == "processed" else ("", "d")
    values = f"a_{of}logprob, b_{of}logprob, {d}"
    query = f"SELECT request_id, output_index, token_id, {values} FROM pairs ORDER BY abs({d}) DESC"
    text = f"""# How two traces differ

{minimised_line(small)}

    tracekit diff a.trace b.trace
    tracekit query a.trace b.trace "{query}"

## What takes A to B
"""
    return text.encode() + b"\n" + to_md(found)


def minimised_line(small: Minimised) -> str:
    """Returns in a sentence what the reduced traces hold, and what proved it."""
    text = (
        f"{small.a.path} and {small.b.path}, {(small.a.num_bytes + small.b.num_bytes) / 1000:,.0f} kB: "
        f"{plural(len(small.cuts), 'request')}, {plural(sum(small.cuts.values()), 'output token')}; token "
        f"{small.output_index} of request '{small.request_id}' differs by {small.d:.3g} nat, shown by {small.evidence}"
    )
    if left_out := sorted({*small.a.left_out, *small.b.left_out}):
        text += f"; rows of {', '.join(left_out)} are left out, for they are large"
    return printable(text)


def plan_to_table(planned: Planned) -> bytes:
    """Returns a plan as people read it."""
    names, rows = _plan_rows(planned)
    return to_bytes(Text(_plan_heading(planned)), _table(names, rows), Text(_plan_closing(planned)))


def plan_to_md(planned: Planned) -> bytes:
    """Returns the same in Markdown."""
    parts = [_plan_heading(planned).encode(), _markdown(*_plan_rows(planned)), _plan_closing(planned).encode()]
    return b"\n\n".join(part.strip() for part in parts) + b"\n"


def plan_to_json(planned: Planned) -> bytes:
    """Returns one object: the fields of `Planned`."""
    return _json(dataclasses.asdict(planned))


def _json(document: Mapping[str, Any]) -> bytes:
    return (dump_json(document, indent=2) + "\n").encode()


def _heading(found: Bisected) -> str:
    text = (
        f"A {found.a}, B {found.b}: {plural(found.num_tokens, 'token')} of {plural(found.num_requests, 'request')}, "
        f"{found.basis} logprobs; {_amounts(found.difference)} a token"
    )
    if found.num_left_out:
        text += f"; {plural(found.num_left_out, 'token')} left out, for want of a finite logprob in some trace"
    if found.steps:
        source = "repeats" if found.noise_source == "null" else "the baseline's replay against A"
        text += f"\nNoise floor, from {source}: {_amounts(found.noise)}"
    return text


def _amounts(amounts: Amounts) -> str:
    return f"k2 {amounts.k2:.3g}, k3 {amounts.k3:.3g}, abs {amounts.abs:.3g}"


def _share_rows(found: Bisected) -> list[list[str]]:
    rows = [_factor_row(factor) for factor in found.factors]
    if found.steps:
        rows.append(["(baseline's replay is not A)", "", "", *_percents(found.baseline_share), "", "", ""])
        rows.append(["(residual)", "", "", *_percents(found.residual_share), "", "", ""])
    return rows


def _factor_row(factor: FactorFound) -> list[str]:
    moves = factor.verdict == MOVES
    verdict = factor.verdict + (f": {factor.detail}" if factor.detail else "")
    return [
        factor.name,
        factor.baseline,
        factor.level or "-",
        *(_percents(factor.share) if moves else ["-"] * len(_percents(NOTHING))),
        _percent(factor.interaction.k2) if moves else "-",
        "-" if factor.removes is None else _percent(factor.removes),
        verdict,
    ]


def _stage_rows(found: Bisected) -> list[list[str]]:
    return [[one.start, one.end, *_percents(one.share), f"{one.size.k2:.3g}"] for one in found.way]


def _step_rows(found: Bisected) -> list[list[str]]:
    return [_step_row(step, found.difference.k2) for step in found.steps]


def _step_row(step: Step, difference: float) -> list[str]:
    if step.to_a is None or step.to_b is None:
        return [step.label, "-", "-", "-", step.reason or "-"]
    left = _percent(step.to_b.k2 / difference)
    return [step.label, f"{step.to_a.k2:.3g}", f"{step.to_b.k2:.3g}", left, str(step.path)]


def _percents(amounts: Amounts) -> list[str]:
    return [_percent(value) for value in dataclasses.astuple(amounts)]


def _percent(value: float) -> str:
    text = f"{value:.1%}"
    return "0.0%" if text == "-0.0%" else text


def _plan_heading(planned: Planned) -> str:
    return (
        f"A {planned.a}, B {planned.b}: {plural(planned.num_pairs, 'token')} compared, {planned.basis} logprobs; "
        f"{_amounts(planned.difference)} a token\n"
        f"Each replay scores {plural(planned.num_tokens, 'token')} of {plural(planned.num_requests, 'request')}"
    )


def _plan_rows(planned: Planned) -> tuple[Sequence[str], list[list[str]]]:
    rows = []
    for one in planned.replays:
        options = " ".join(f"{name}={_option(value)}" for name, value in one.options.items())
        state = one.reason or ("is there" if one.is_there else "to be made")
        rows.append([one.label, one.backend or "-", options or "-", state])
    return ("replay", "backend", "options", "state"), rows


def _option(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _plan_closing(planned: Planned) -> str:
    stop = "It stops at the first replay that reaches B"
    if not planned.most_combinations:
        return f"{stop}."
    more = plural(planned.most_combinations, "replay")
    return f"{stop}; where no single factor does, at most {more} of several changes follow."


def _sentence(text: str) -> str:
    # The names of settings stay as they are.
    return (text if "=" in text.split()[0] else text[:1].upper() + text[1:]) + "."


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    table = new_table()
    for name in names:
        table.add_column(name, justify="left" if name in _LEFT else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    return table


def _markdown(names: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    columns = {name: pa.array([row[index] for row in rows], pa.string()) for index, name in enumerate(names)}
    sink = io.BytesIO()
    md.write(TableRows(pa.table(columns)), sink)
    return sink.getvalue()
