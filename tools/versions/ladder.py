"""The difference of two releases, rung by rung: each rung is two traces that differ by one thing only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tracekit.bisect.scores import Scores
from tracekit.bisect.shares import means, share
from tracekit.store import Trace


@dataclass(frozen=True)
class Rung:
    """A rung.

    Attributes:
        what: it changes.
        to: the trace that it leads to.
    """

    what: str
    to: Path


def climb(a: Path, b: Path, rungs: Sequence[Rung]) -> list[dict[str, Any]]:
    """Returns each rung's share of the difference, and how far its two ends are from each other.

    Args:
        a, b: the traces; processed logprobs are compared.
        rungs: from A to B; the last one leads to B.
    """
    scores = Scores(Trace(a), Trace(b), "processed")
    names = ["a"]
    for number, rung in enumerate(rungs[:-1]):
        scores.add(str(number), rung.to)
        names.append(str(number))
    names.append("b")
    d = scores.difference("a", "b")
    found = []
    for rung, start, end in zip(rungs, names[:-1], names[1:], strict=True):
        delta = scores.difference(start, end)
        sizes = {"size": asdict(means(delta)), "share": asdict(share(delta, d))}
        largest = float(np.max(np.abs(delta), initial=0.0))
        found.append({"what": rung.what, **sizes, "largest": largest, "num_tokens": scores.num_tokens})
    return found
