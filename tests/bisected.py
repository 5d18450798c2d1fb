"""Traces whose scores are known sums, to be bisected with the backend of linear_backend.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import linear_backend
from factories import make_request, make_trace
from linear_backend import LinearOptions
from tracekit.bisect import scores
from tracekit.store import Trace

IDS = {f"r{number:02}": [(number * 37 + place * 11) % 900 + 1 for place in range(9)] for number in range(10)}
PROMPTS = {name: list(range(1, 4 + index % 5)) for index, name in enumerate(IDS)}


def announced(folder: Path) -> Iterator[None]:
    """Announces the backend and its factors for as long as it is suspended.

    To open two traces takes half a second: what was read of the same two is not read again.
    """
    known: dict[tuple[Any, ...], Any] = {}
    read_rows = scores.read_rows

    def read_once(a: Trace, b: Trace, basis: str, options: Mapping[str, Any]) -> Any:
        key = (a.manifest.trace_id, b.manifest.trace_id, basis, *sorted(options.items()))
        if key not in known:
            known[key] = read_rows(a, b, basis, options)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "read_rows", read_once)
        linear_backend.install(folder)
        patch.syspath_prepend(str(folder))
        yield


def values(batch: tuple[str, ...] = tuple(IDS), **options: Any) -> npt.NDArray[np.float64]:
    """Returns the scores of all tokens, request after request, that a replay in one batch would give."""
    of = LinearOptions(**options)
    return np.concatenate([linear_backend.scores(of, name, ids, batch) for name, ids in IDS.items()])


def made(path: Path, logprobs: npt.NDArray[np.float64], *, parent: Path | None = None, **settings: Any) -> Path:
    """Writes a trace with these logprobs: a recording, or a replay of `parent`."""
    rows = logprobs.reshape(len(IDS), -1).tolist()
    requests = [
        make_request(name, prompt=PROMPTS[name], token_ids=ids, logprob=row)
        for (name, ids), row in zip(IDS.items(), rows, strict=True)
    ]
    role = "record" if parent is None else "replay"
    return make_trace(path, requests=requests, role=role, parent=parent, **settings)
