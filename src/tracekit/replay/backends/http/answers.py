"""What a server answered, and ways in which an answer is of no use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Candidates",
    "Continuation",
    "RefusedError",
    "Score",
    "UnusableAnswerError",
    "candidates_of",
    "check_places",
    "id_of",
    "logprob_of",
    "part_of",
]

# Above 0 by more than the rounding of a log-softmax.
_MOST_LOGPROB = 1e-3

Candidates = Sequence[tuple[int, float]]


class RefusedError(Exception):
    """The server understood the request, and refuses it."""


class UnusableAnswerError(Exception):
    """The server answered, but not what was asked for."""


@dataclass(frozen=True)
class Continuation:
    """The greedy token after a prompt.

    Attributes:
        logprob: its logprob.
        best: the largest logprob of the distribution that it was drawn from.
        token_id: None where the server names tokens by their text.
    """

    logprob: float
    best: float
    token_id: int | None


@dataclass(frozen=True)
class Score:
    """What a server tells of one token of a prompt, in nats.

    Attributes:
        logprob: of the token.
        best: the largest logprob of its distribution; None where it is not told.
        candidates: K tokens as (token id, logprob), sorted by logprob, descending, then by id; None where the server
            does not name all K of them by their ids.
    """

    logprob: float
    best: float | None
    candidates: Candidates | None


def part_of(answer: Any, *path: str | int) -> Any:
    """Returns what stands in an answer below keys and indices; None where there is nothing."""
    for step in path:
        try:
            answer = answer[step]
        except (KeyError, IndexError, TypeError):
            return None
    return answer


def logprob_of(value: Any) -> float:
    """Returns a logprob of an answer.

    Raises:
        UnusableAnswerError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise UnusableAnswerError(f"a logprob is {value!r}, not a number"[:120])
    if value > _MOST_LOGPROB:
        raise UnusableAnswerError(f"a logprob is {value:.4g}, above 0, as where logits are given for logprobs")
    return float(value)


def id_of(value: Any) -> int:
    """Returns a token id of an answer, which may be the key of an object.

    Raises:
        UnusableAnswerError: it is none.
    """
    try:
        return int(value)
    except (TypeError, ValueError):
        raise UnusableAnswerError(f"a token id is {value!r}, not a number"[:120]) from None


def check_places(num_places: int, first_logprob: Any, num_tokens: int) -> None:
    """Proves that a server speaks of as many tokens as it was given.

    Raises:
        UnusableAnswerError: it does not.
    """
    if num_places != num_tokens:
        raise UnusableAnswerError(f"{num_places} prompt logprobs for {num_tokens} tokens")
    if first_logprob is not None:
        raise UnusableAnswerError("a prompt logprob for the first token, which nothing predicts")


def candidates_of(by_id: Mapping[int, float], own_id: int, num_candidates: int) -> Candidates | None:
    """Returns the candidates of one place, in order; None where there are not as many as were asked for.

    Args:
        by_id: logprobs by token id; beside the candidates, the scored token may be there though it is none of them.
        own_id: the token that is scored.
        num_candidates: how many were asked for.
    """
    if len(by_id) == num_candidates + 1:
        by_id = {token_id: logprob for token_id, logprob in by_id.items() if token_id != own_id}
    if len(by_id) != num_candidates:
        return None
    return sorted(by_id.items(), key=lambda candidate: (-candidate[1], candidate[0]))
