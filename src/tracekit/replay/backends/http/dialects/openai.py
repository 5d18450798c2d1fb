"""OpenAI's completions API: `echo` with `logprobs`, by the text of tokens."""

from __future__ import annotations

from typing import Any

from tracekit.replay.backends.http.answers import (
    Candidates,
    Continuation,
    Score,
    UnusableAnswerError,
    candidates_of,
    check_places,
    part_of,
)
from tracekit.replay.backends.http.dialects.base import Dialect
from tracekit.replay.backends.http.dialects.completions import (
    PATH,
    completion_logprob,
    generated_token,
    greedy_request,
    named_ids,
)

__all__ = ["OpenAIDialect"]


class OpenAIDialect(Dialect):
    """Two tokens may have one text, so candidates are known only where a server writes 'token_id:123' for them."""

    name = "openai"
    path = PATH

    def scoring(self, model: str, token_ids: list[int], num_candidates: int) -> dict[str, Any]:
        # One token is generated, as some servers take max_tokens 0 for no limit.
        return {**greedy_request(model, token_ids), "logprobs": num_candidates, "echo": True}

    def scores(self, answer: Any, token_ids: list[int], first: int, num_candidates: int) -> list[Score]:
        logprobs = part_of(answer, "choices", 0, "logprobs")
        own = part_of(logprobs, "token_logprobs")
        # Without echo there is the generated token alone.
        if not isinstance(own, list) or len(own) < 2:
            raise UnusableAnswerError("no prompt logprobs")
        if len(own) == len(token_ids) + 1:
            own = own[:-1]
        check_places(len(own), own[0], len(token_ids))
        tokens = part_of(logprobs, "tokens")
        echoed = named_ids(tokens[: len(own)]) if isinstance(tokens, list) else None
        if echoed and echoed != token_ids:
            raise UnusableAnswerError("an echo of other tokens")
        top = part_of(logprobs, "top_logprobs")
        return [
            Score(completion_logprob(own[index]), *_candidates(part_of(top, index), token_ids[index], num_candidates))
            for index in range(first, len(own))
        ]

    def continuing(self, model: str, token_ids: list[int]) -> dict[str, Any]:
        return {**greedy_request(model, token_ids), "logprobs": 1}

    def continuation(self, answer: Any) -> Continuation:
        return generated_token(answer)


def _candidates(place: Any, token_id: int, num_candidates: int) -> tuple[float | None, Candidates | None]:
    """Returns the largest logprob of a place, and its candidates."""
    if not isinstance(place, dict) or not place:
        return None, None
    logprobs = [completion_logprob(value) for value in place.values()]
    ids = named_ids(place)
    if ids is None:
        return max(logprobs), None
    return max(logprobs), candidates_of(dict(zip(ids, logprobs, strict=True)), token_id, num_candidates)
