"""What differs between the configurations of two traces, beside the causes that are about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tracekit.analysis.explain.queries import query
from tracekit.analysis.session import Session


class About(Protocol):
    """What is asked of a finding here.

    Attributes:
        cause: its name.
        shares: of each statistic, the share that it accounts for.
        settings: settings that the cause is about, columns of `runs` or `requests` or names of `setting_ranks`.
    """

    @property
    def cause(self) -> str: ...
    @property
    def shares(self) -> Mapping[str, float]: ...
    @property
    def settings(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Accounted:
    """What one cause accounts for.

    Attributes:
        cause: its name.
        shares: of k2, k3 and abs(d).
    """

    cause: str
    shares: Mapping[str, float]


@dataclass(frozen=True)
class SettingDifference:
    """One setting that differs, or that one side does not tell.

    Attributes:
        setting, source: its name, and where it stands (a table, or a document in `runs`).
        a_value, b_value: as text; several, with commas, where processes or requests disagree; None where a side does
            not tell.
        known: whether both sides tell.
        relevance, reason: what it changes and why, as in the view `setting_ranks`; reason is None where nothing is
            known of its effect.
        num_requests: aligned requests for which it differs.
        causes: causes that were found and are about it, in the order of the findings.
    """

    setting: str
    source: str
    a_value: str | None
    b_value: str | None
    known: bool
    relevance: str
    reason: str | None
    num_requests: int
    causes: tuple[Accounted, ...] = ()


def setting_differences(session: Session, findings: Iterable[About] = ()) -> tuple[SettingDifference, ...]:
    """Returns what differs between A and B, what matters most first and what one side does not tell last.

    Args:
        session: over two traces.
        findings: causes that were found; each is beside the settings that it is about, and what is in these.
    """
    found = tuple(findings)
    rows = session.sql(query("setting_differences")).dicts()
    return tuple(SettingDifference(**row, causes=_about(row["setting"], found)) for row in rows)


def _about(setting: str, findings: tuple[About, ...]) -> tuple[Accounted, ...]:
    return tuple(
        Accounted(finding.cause, finding.shares)
        for finding in findings
        if any(setting == name or setting.startswith(f"{name}.") for name in finding.settings)
    )
