"""What follows for the table `tokens` from logprobs alone.

The difference of two logprobs of one distribution is that of their logits, so order, rank and margin are known where
the best candidates are; logits themselves, logsumexp and entropy are not. Equal logprobs count as equal logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tracekit.replay.backends.base import Int32Array
from tracekit.replay.backends.http.answers import Candidates, Score

__all__ = ["NUM_FOR_MARGIN", "columns_of"]

# So many candidates are asked for at least.
NUM_FOR_MARGIN = 2


def columns_of(token_ids: Int32Array, scores: Sequence[Score], num_kept: int) -> dict[str, Any]:
    """Returns columns of `tokens`.

    Args:
        token_ids: int32 [T].
        scores: of these tokens.
        num_kept: how many candidates to keep of each.
    """
    candidates = [score.candidates for score in scores]
    return {
        "token_id": token_ids,
        "logprob": np.array([score.logprob for score in scores], np.float32),
        "rank": [_rank(token_id, known) for token_id, known in zip(token_ids.tolist(), candidates, strict=True)],
        "argmax_token_id": [None if known is None else known[0][0] for known in candidates],
        "top1_margin": [None if known is None else known[0][1] - known[1][1] for known in candidates],
        "top_token_ids": [
            None if known is None else [token_id for token_id, _ in known[:num_kept]] for known in candidates
        ],
    }


def _rank(token_id: int, candidates: Candidates | None) -> int | None:
    """Returns 1 + the number of larger logits; None where the token is not among the best.

    An engine's own rank is of no use: some count equal logits too.
    """
    logprobs = dict(candidates or ())
    if token_id not in logprobs:
        return None
    return 1 + sum(logprob > logprobs[token_id] for logprob in logprobs.values())
