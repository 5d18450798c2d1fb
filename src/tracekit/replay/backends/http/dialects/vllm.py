"""vLLM's extension of the completions API: `prompt_logprobs`, by token id."""

from __future__ import annotations

from typing import Any

from tracekit.replay.backends.http.answers import (
    Continuation,
    Score,
    UnusableAnswerError,
    candidates_of,
    check_places,
    id_of,
    part_of,
)
from tracekit.replay.backends.http.dialects.base import Dialect
from tracekit.replay.backends.http.dialects.completions import (
    PATH,
    completion_logprob,
    generated_token,
    greedy_request,
)

__all__ = ["VllmDialect"]


class VllmDialect(Dialect):
    """A place of `prompt_logprobs` holds the K best tokens, and the prompt's own where it is none of them."""

    name = "vllm"
    path = PATH

    def scoring(self, model: str, token_ids: list[int], num_candidates: int) -> dict[str, Any]:
        return {**_request(model, token_ids), "prompt_logprobs": num_candidates}

    def scores(self, answer: Any, token_ids: list[int], first: int, num_candidates: int) -> list[Score]:
        places = part_of(answer, "choices", 0, "prompt_logprobs")
        if not isinstance(places, list):
            raise UnusableAnswerError("no prompt logprobs")
        check_places(len(places), part_of(places, 0), len(token_ids))
        return [
            _score(place, token_id, num_candidates)
            for place, token_id in zip(places[first:], token_ids[first:], strict=True)
        ]

    def continuing(self, model: str, token_ids: list[int]) -> dict[str, Any]:
        return {**_request(model, token_ids), "logprobs": 1, "return_tokens_as_token_ids": True}

    def continuation(self, answer: Any) -> Continuation:
        return generated_token(answer)


def _request(model: str, token_ids: list[int]) -> dict[str, Any]:
    # The model's generation_config.json may set another penalty.
    return {**greedy_request(model, token_ids), "repetition_penalty": 1}


def _score(place: Any, token_id: int, num_candidates: int) -> Score:
    entries = place if isinstance(place, dict) else {}
    by_id = {id_of(name): completion_logprob(part_of(entry, "logprob")) for name, entry in entries.items()}
    if token_id not in by_id:
        raise UnusableAnswerError(f"prompt logprobs without the prompt's own token {token_id}")
    return Score(by_id[token_id], max(by_id.values()), candidates_of(by_id, token_id, num_candidates))
