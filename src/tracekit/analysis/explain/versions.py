"""Whose weights: how many updates A is away from B at each token, and where either attended to older KV entries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.analysis.explain.base import Question
from tracekit.analysis.explain.queries import query
from tracekit.analysis.explain.tokens import Bools, rows

_SIDES = ("a", "b")


@dataclass(frozen=True)
class Versions:
    """Weights of the compared tokens.

    Attributes:
        lag: float32 [N], A's version less B's; a side that tells none has one all along.
        agrees: bool [N], whether the lag is the one at which both agree best.
        age: float32 [N], by how many versions the oldest KV entry is older on one side than on the other.
        reference: that lag.
        behind: by how many versions A is behind B all along; 0 where that varies, or a side tells no versions.
    """

    lag: NDArray[np.float32]
    agrees: Bools
    age: NDArray[np.float32]
    reference: int
    behind: int

    @classmethod
    def of(cls, question: Question) -> Versions | None:
        """Returns them; None where neither side tells versions."""
        return question.tokens.once("versions", lambda: cls._of(question))

    @classmethod
    def _of(cls, question: Question) -> Versions | None:
        tokens = question.tokens
        told = [tokens.known(f"{side}_weight_version") for side in _SIDES]
        if not any(told):
            return None
        lag = _difference(question, "weight_version")
        age = lag - _difference(question, "kv_weight_version_min", or_else="weight_version")
        values = lag[:1] if np.min(lag) == np.max(lag) else np.unique(lag)
        reference = float(values[0])
        if len(values) > 1:
            # By what differs at all: a cause that was found leaves its tokens as large as the others.
            whole = replace(question, residual=np.where(tokens.finite, tokens.d, 0.0)) if question.found else question
            score = whole.score
            reference = float(values[int(np.argmin([float(np.mean(score[lag == value])) for value in values]))])
        behind = -int(reference) if all(told) and len(values) == 1 else 0
        return cls(lag, lag == reference, np.abs(age), int(reference), behind)

    @property
    def stale(self) -> Bools:
        """Returns of which tokens that is one or more, bool [N]."""
        return np.asarray(self.age != 0)

    @property
    def fresh(self) -> Bools:
        """Returns which tokens neither other weights nor older KV entries touch, bool [N]."""
        return self.agrees & ~self.stale


def _difference(question: Question, name: str, or_else: str | None = None) -> NDArray[np.float32]:
    """Returns A's number less B's, float32 [N]; one that is not told is `or_else`, and then 0."""
    values = []
    for side in _SIDES:
        value = question.tokens[f"{side}_{name}"]
        if or_else is not None:
            value = np.where(np.isnan(value), question.tokens[f"{side}_{or_else}"], value)
        values.append(np.nan_to_num(value).astype(np.float32))
    return np.asarray(values[0] - values[1])


def updates(question: Question) -> dict[str, Any]:
    """Returns the steps at which weights changed while tokens were sampled, and what became of the KV cache.

    Returns:
        'steps': the first step of each version but the first. 'kv', where it is known: 'kept' where requests that ran
        through a change went on with the entries that they had, 'cleared' where these were computed anew, or 'in part'.
    """
    tokens = question.tokens
    side = "a" if tokens.known("a_weight_version") else "b"
    began, kept = (
        rows(tokens.connection, text.replace("${side}", side)) for text in (query("updates"), query("kept_entries"))
    )
    found: dict[str, Any] = {"steps": [row["step"] for row in began[1:]]}
    if (num := kept[0]["num"]) > 0:
        found["kv"] = {0: "cleared", num: "kept"}.get(kept[0]["num_stale"], "in part")
    return found
