"""What `gate` says: a table for people, JSON and JUnit XML for programs."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from rich.text import Text

from tracekit.analysis.gate import FAIL, NO_DATA, NOISE, Verdict
from tracekit.report.console import new_table, to_bytes
from tracekit.report.values import dump_json, plural, to_text

_STYLES = {FAIL: "bold red", NO_DATA: "bold red", NOISE: "yellow"}


def to_table(verdicts: Sequence[Verdict]) -> bytes:
    """Returns requirements, values, intervals and verdicts as people read them."""
    table = new_table()
    for name in ("requirement", "basis", "value", "95% interval", "largest", "floor", "verdict"):
        table.add_column(name, justify="left" if name in ("requirement", "basis", "verdict") else "right")
    for verdict in verdicts:
        figure = verdict.figure
        table.add_row(
            verdict.requirement.text,
            figure.basis + (" (descriptive)" if figure.descriptive else ""),
            to_text(figure.value),
            _interval(verdict),
            to_text(figure.largest),
            to_text(figure.floor),
            Text(_outcome(verdict), style=_STYLES.get(verdict.outcome, "")),
        )
    num_failed = sum(not verdict.passed for verdict in verdicts)
    closing = (
        f"{plural(num_failed, 'requirement')} of {len(verdicts)} not met" if num_failed else "All requirements met"
    )
    return to_bytes(table, Text(closing))


def to_json(verdicts: Sequence[Verdict]) -> bytes:
    """Returns one object: `passed`, and `requirements` with each verdict.

    A requirement has `requirement` (its text), `basis`, `name`, `value`, `low`, `high`, `reliable`, `largest`, `floor`,
    `bound`, `verdict` and `passed`.
    """
    rows = [
        {
            "requirement": verdict.requirement.text,
            **{
                name: getattr(verdict.figure, name)
                for name in ("basis", "name", "value", "low", "high", "reliable", "largest", "floor")
            },
            "bound": verdict.bound,
            "verdict": verdict.outcome,
            "passed": verdict.passed,
        }
        for verdict in verdicts
    ]
    document = {"passed": all(verdict.passed for verdict in verdicts), "requirements": rows}
    return (dump_json(document, indent=2) + "\n").encode()


def to_junit(verdicts: Sequence[Verdict]) -> bytes:
    """Returns a JUnit XML report with one test case a requirement."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    suite = ElementTree.Element("testsuite", name="tracekit gate", tests=str(len(verdicts)), failures=str(len(failed)))
    for verdict in verdicts:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"tracekit.gate.{verdict.figure.basis}", name=verdict.requirement.text
        )
        text = f"{verdict.figure.name} is {to_text(verdict.figure.value)}, interval {_interval(verdict) or '-'}"
        if not verdict.passed:
            ElementTree.SubElement(case, "failure", message=f"{_outcome(verdict)}: {text}").text = text
        else:
            ElementTree.SubElement(case, "system-out").text = text
    document: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _interval(verdict: Verdict) -> str:
    figure = verdict.figure
    if figure.low is None or figure.high is None:
        return ""
    return f"{figure.low:.3g} to {figure.high:.3g}" + ("" if figure.reliable else " ?")


def _outcome(verdict: Verdict) -> str:
    if verdict.is_settled is False and verdict.outcome != NO_DATA:
        return f"{verdict.outcome} (the interval holds the bound)"
    return verdict.outcome
