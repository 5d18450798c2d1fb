"""Proves, before anything is scored, that a server's prompt logprobs are those of the tokens they stand beside.

A server may leave them out, count them from another token, or give those of the next one. So a few short prompts are
continued by one greedy token each, whose distribution is then known, and must be found again among the prompt logprobs
of the longest.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tracekit.errors import BackendUnavailableError
from tracekit.replay.backends.http.answers import Continuation, RefusedError, Score, UnusableAnswerError
from tracekit.replay.backends.http.dialects import Dialect
from tracekit.replay.backends.http.transport import Transport, all_of

__all__ = ["find_dialect", "prove"]

# Ids that hardly any vocabulary lacks, in no order that a model would guess.
_PROMPT = (17, 40, 9, 33, 21, 12, 36)
_SHORTEST = 2

# Of medians: more than a step of bf16 logits between two kernels, less than what two distributions differ by.
_TOLERANCE = 0.25

_NUM_CANDIDATES = 2


async def find_dialect(transport: Transport, dialects: Sequence[Dialect], model: str) -> Dialect:
    """Returns the first dialect in which a server gives prompt logprobs.

    Raises:
        BackendUnavailableError: there is none.
    """
    reasons = []
    for dialect in dialects:
        try:
            await prove(transport, dialect, model)
        except (RefusedError, UnusableAnswerError) as error:
            reasons.append(f"{error} (dialect '{dialect.name}')")
        else:
            return dialect
    raise BackendUnavailableError(
        f"{transport.address} cannot score recorded tokens, which takes prompt logprobs: {', '.join(reasons)}"
    )


async def prove(transport: Transport, dialect: Dialect, model: str) -> None:
    """Proves one dialect.

    Raises:
        RefusedError: the server refuses what it is asked for.
        UnusableAnswerError: its prompt logprobs are missing, or not those of their tokens.
    """
    prompts = [list(_PROMPT[:length]) for length in range(_SHORTEST, len(_PROMPT) + 1)]
    greedy = await all_of(_continue(transport, dialect, model, prompt) for prompt in prompts)
    last_id = greedy[-1].token_id
    token_ids = [*_PROMPT, _PROMPT[0] if last_id is None else last_id]
    answer = await transport.post(dialect.path, dialect.scoring(model, token_ids, _NUM_CANDIDATES))
    scores = dialect.scores(answer, token_ids, 1, _NUM_CANDIDATES)
    _compare(scores, greedy)
    if last_id is not None and abs(scores[-1].logprob - greedy[-1].logprob) > _TOLERANCE:
        raise UnusableAnswerError(
            f"a prompt logprob of {scores[-1].logprob:.3f} where the same token was generated with "
            f"{greedy[-1].logprob:.3f}"
        )


async def _continue(transport: Transport, dialect: Dialect, model: str, prompt: list[int]) -> Continuation:
    return dialect.continuation(await transport.post(dialect.path, dialect.continuing(model, prompt)))


def _compare(scores: Sequence[Score], greedy: Sequence[Continuation]) -> None:
    """Finds the greedy distributions among the scores, of which the first is that of the second token."""
    best = [score.best for score in scores if score.best is not None]
    if len(best) < len(scores):
        raise UnusableAnswerError("prompt logprobs without the best token's, which would prove them")

    def difference(shift: int) -> float:
        places = range(_SHORTEST - 1 + shift, len(best) + shift)
        pairs = [(best[place], one.best) for place, one in zip(places, greedy, strict=True) if place < len(best)]
        return statistics.median(abs(found - expected) for found, expected in pairs)

    there = difference(0)
    if there <= _TOLERANCE:
        return
    if min(difference(-1), difference(1)) <= _TOLERANCE:
        raise UnusableAnswerError("prompt logprobs that are shifted by one: each is that of the token beside it")
    raise UnusableAnswerError(
        f"prompt logprobs that differ from those of the same tokens when generated, by {there:.3g} nats at the median"
    )
