"""From a row of raw logits to what a trace says of its token, in float64 NumPy: the benchmark's own arithmetic.

It shares no code with the recorder, the replayer or what explains traces, so that a mistake there is not made here too.
Shapes: V vocabulary, K candidates.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_GREEDY_BELOW = 1e-5
_FEW = 2048


@dataclass(frozen=True)
class Sampling:
    """What turns raw logits into the distribution that a token is drawn from; the defaults change nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Sampling:
        """Reads them from a row of `requests`."""
        bias = json.loads(request.get("logit_bias") or "{}")
        names = (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
        )
        known = {name: request[name] for name in names if request.get(name) is not None}
        return cls(**known, logit_bias={int(token): float(value) for token, value in bias.items()})

    @property
    def is_greedy(self) -> bool:
        return self.temperature < _GREEDY_BELOW

    @property
    def truncates(self) -> bool:
        return not self.is_greedy and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)

    @property
    def penalises(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1 or self.logit_bias)


def logsumexp(row: Floats) -> float:
    """Returns ln sum exp of a row [V]; NaN where it holds NaN or positive infinity."""
    largest = float(np.max(row))
    if not np.isfinite(largest):
        return float("nan")
    return largest + float(np.log(np.sum(np.exp(row - largest))))


def raw_columns(row: Floats, token: int, num_candidates: int) -> dict[str, Any]:
    """Returns the columns of `tokens` that are of the raw logits [V], in float64."""
    total = logsumexp(row)
    finite = np.isfinite(total)
    first = np.argpartition(-row, num_candidates)[: num_candidates + 1] if finite else np.arange(0)
    # By logit, then by id. What ties with the last one may stand in its place.
    first = first[np.lexsort((first, -row[first]))]
    probability = np.exp(row - total)
    return {
        "logit": float(row[token]),
        "logsumexp": total,
        "logprob": float(row[token] - total),
        "rank": 1 + int(np.sum(row > row[token])),
        "num_tied": int(np.sum(row == row[token])) - 1 if finite else None,
        "entropy": float(-np.sum(np.where(probability > 0, probability * (row - total), 0))) if finite else None,
        "logit_min": float(np.min(row)),
        "argmax_token_id": int(first[0]) if finite else None,
        "top1_margin": float(row[first[0]] - row[first[1]]) if finite else None,
        "top_token_ids": [int(i) for i in first[:num_candidates]],
        "top_logits": [float(row[i]) for i in first[:num_candidates]],
    }


def processed_columns(
    row: Floats, token: int, sampling: Sampling, prompt: Sequence[int], output: Sequence[int]
) -> dict[str, Any]:
    """Returns the columns of `tokens` that are of the distribution the token was drawn from.

    Args:
        row: raw logits, [V].
        token: the token.
        sampling: how the request is sampled.
        prompt: its prompt.
        output: its output tokens before this one.
    """
    scores = _penalised(row, sampling, prompt, output) if sampling.penalises else row.copy()
    if not sampling.is_greedy:
        scores /= sampling.temperature
    whole = logsumexp(scores)
    # The token that was drawn stays before others that equal it.
    kept = _kept(scores, sampling, token) if sampling.truncates else np.isfinite(scores)
    total = logsumexp(np.where(kept, scores, -np.inf)) if sampling.truncates else whole
    return {
        "processed_logprob": float(scores[token] - total) if kept[token] else float("-inf"),
        "kept_count": int(np.sum(kept)) if sampling.truncates else len(row),
        "kept_mass": float(np.exp(total - whole)) if sampling.truncates else 1.0,
    }


def to_bf16(values: Floats) -> Floats:
    """Rounds to bf16, to nearest, ties to even."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return np.asarray(rounded.astype(np.uint32).view(np.float32), np.float64)


def _penalised(row: Floats, sampling: Sampling, prompt: Sequence[int], output: Sequence[int]) -> Floats:
    scores = row.copy()
    for token, bias in sampling.logit_bias.items():
        scores[token] += bias
    generated = Counter(int(token) for token in output)
    if sampling.repetition_penalty != 1:
        seen = np.array(sorted(set(generated) | {int(token) for token in prompt}), np.int64)
        factor = np.where(scores[seen] > 0, 1 / sampling.repetition_penalty, sampling.repetition_penalty)
        scores[seen] *= factor
    for token, count in generated.items():
        scores[token] -= sampling.frequency_penalty * count + sampling.presence_penalty
    return scores


def _kept(scores: Floats, sampling: Sampling, token: int) -> NDArray[np.bool_]:
    kept = np.ones(len(scores), bool)
    if sampling.min_p > 0:
        kept &= scores - np.max(scores) >= np.log(sampling.min_p)
    if 0 < sampling.top_k < len(scores):
        kept &= scores >= np.partition(scores, -sampling.top_k)[-sampling.top_k]
    if sampling.top_p < 1:
        places = np.flatnonzero(kept)
        total = np.sum(np.exp(scores[places] - np.max(scores)))
        if len(places) > _FEW:
            # Most have next to no mass. Where the first few have enough of it, the others are none of those kept.
            few = places[scores[places] >= np.partition(scores[places], -_FEW)[-_FEW]]
            if np.sum(np.exp(scores[few] - np.max(scores))) >= sampling.top_p * total:
                places = few
                kept = np.zeros(len(scores), bool)
                kept[few] = True
        # The largest first; among equals the token that was drawn, then the highest ids.
        places = places[np.lexsort((-places, places != token, -scores[places]))]
        mass = np.exp(scores[places] - np.max(scores))
        before = np.cumsum(mass) - mass
        kept[places[before >= sampling.top_p * total]] = False
    return kept
