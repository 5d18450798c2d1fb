"""Independent NumPy float64 versions of what tracekit computes with torch, written from the definitions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def log_softmax(logits: npt.ArrayLike) -> Floats:
    row = np.asarray(logits, np.float64)
    finite = row - row.max()
    return finite - np.log(np.exp(finite).sum())


def rank(logits: npt.ArrayLike, token_id: int) -> int:
    row = np.asarray(logits, np.float64)
    return 1 + int((row > row[token_id]).sum())


def candidates(logits: npt.ArrayLike, k: int) -> list[int]:
    row = np.asarray(logits, np.float64)
    return [int(token_id) for token_id in np.lexsort((np.arange(len(row)), -row))[:k]]


def processed(
    logits: npt.ArrayLike, params: Mapping[str, Any], prompt: Sequence[int], output: Sequence[int]
) -> tuple[Floats, int, float]:
    """Returns processed logprobs (-inf where excluded), how many tokens are kept, and the mass they had before."""
    row = np.array(logits, np.float64)
    counts = Counter(output)
    for token_id in set(prompt) | set(output):
        repetition = params.get("repetition_penalty", 1.0)
        row[token_id] = row[token_id] / repetition if row[token_id] > 0 else row[token_id] * repetition
    for token_id, count in counts.items():
        row[token_id] -= params.get("frequency_penalty", 0.0) * count + params.get("presence_penalty", 0.0)
    if params["temperature"] == 0:
        return log_softmax(row), len(row), 1.0
    row /= params["temperature"]
    before = np.exp(log_softmax(row))

    row[before < params.get("min_p", 0.0) * before.max()] = -np.inf
    top_k = params.get("top_k", 0)
    if 0 < top_k < len(row):
        row[row < np.sort(row)[-top_k]] = -np.inf
    probs = np.exp(log_softmax(row))
    mass = 0.0
    for token_id in np.argsort(-probs, kind="stable") if params.get("top_p", 1.0) < 1 else ():
        if mass >= params["top_p"]:
            row[token_id] = -np.inf
        mass += probs[token_id]
    kept = row > -np.inf
    return log_softmax(row), int(kept.sum()), float(before[kept].sum())
