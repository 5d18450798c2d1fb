"""Tokens that a replay gives to an engine: what it asks for in a request's `extra_args`, under one key.

    {"tracekit_forced": {"num_prompt_tokens": 7, "token_ids": [11, 12], "candidate_ids": [[11, 4], [12]], "draw": 3}}

`token_ids` stand after the first `num_prompt_tokens` tokens of the sequence, whether the engine is made to sample them
or has them in its prompt. `candidate_ids` are, for each, tokens whose raw logits are wanted as well; empty for none.
`draw` is a seed whose random numbers are to pick a token from each distribution, -1 for the most probable one.

Shape suffixes: T given tokens, K most candidates of one, R rows of a capture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

KEY = "tracekit_forced"

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Forced:
    """The given tokens of one request.

    Attributes:
        num_prompt_tokens: where they begin in the sequence.
        token_ids: int64 [T].
        candidate_ids: int64 [T, K], -1 where a token has fewer than K.
        draw: the seed of a draw that is made again; -1 for a greedy one, None for none.
    """

    num_prompt_tokens: int
    token_ids: Int64Array
    candidate_ids: Int64Array
    draw: int | None = None

    def token_at(self, position: int) -> int | None:
        """Returns the token that stands at a place of the sequence; None where none is given."""
        index = position - self.num_prompt_tokens
        return int(self.token_ids[index]) if 0 <= index < len(self.token_ids) else None

    def candidates_at(self, position: int) -> Int64Array:
        """Returns the candidates [K] of a place of the sequence; none where no token is given."""
        index = position - self.num_prompt_tokens
        is_given = 0 <= index < len(self.candidate_ids)
        return self.candidate_ids[index] if is_given else np.empty(0, np.int64)


def forced_of(extra_args: Mapping[str, Any] | None) -> Forced | None:
    """Reads the tokens that are given to a request; None where none are."""
    given = (extra_args or {}).get(KEY)
    if given is None:
        return None
    lists = list(given.get("candidate_ids") or ())
    candidate_ids = padded_candidates([np.array(ids, np.int64) for ids in lists])
    token_ids = np.array(given["token_ids"], np.int64)
    return Forced(int(given["num_prompt_tokens"]), token_ids, candidate_ids, given.get("draw"))


def padded_candidates(candidates: list[Int64Array]) -> Int64Array:
    """Returns the candidates of rows as one array [R, K], -1 where a row has fewer than K."""
    padded = np.full((len(candidates), max(map(len, candidates), default=0)), -1, np.int64)
    for row, ids in zip(padded, candidates, strict=True):
        row[: len(ids)] = ids
    return padded
