"""SGLang's own API, `/generate`: written to its documentation, not run here.

The documentation is that of "Sampling Parameters" and "Native APIs" on its site (`input_ids`, `return_logprob`,
`logprob_start_len`, `top_logprobs_num`), and what its own tests expect of `meta_info`.
"""

from __future__ import annotations

from typing import Any

from tracekit.replay.backends.http.answers import (
    Continuation,
    Score,
    UnusableAnswerError,
    candidates_of,
    check_places,
    id_of,
    logprob_of,
    part_of,
)
from tracekit.replay.backends.http.dialects.base import Dialect

__all__ = ["SGLangDialect"]


class SGLangDialect(Dialect):
    """A place is [logprob, token id, text]; the first one's logprob is null."""

    name = "sglang"
    path = "/generate"

    def scoring(self, model: str, token_ids: list[int], num_candidates: int) -> dict[str, Any]:  # noqa: ARG002
        return _request(token_ids, max_new_tokens=0, num_candidates=num_candidates)

    def scores(self, answer: Any, token_ids: list[int], first: int, num_candidates: int) -> list[Score]:
        places = part_of(answer, "meta_info", "input_token_logprobs")
        if not isinstance(places, list) or not places:
            raise UnusableAnswerError("no prompt logprobs")
        check_places(len(places), part_of(places, 0, 0), len(token_ids))
        top = part_of(answer, "meta_info", "input_top_logprobs")
        return [
            _score(places[index], part_of(top, index), token_ids[index], num_candidates)
            for index in range(first, len(places))
        ]

    def continuing(self, model: str, token_ids: list[int]) -> dict[str, Any]:  # noqa: ARG002
        return _request(token_ids, max_new_tokens=1, num_candidates=1)

    def continuation(self, answer: Any) -> Continuation:
        own = part_of(answer, "meta_info", "output_token_logprobs", 0)
        if own is None:
            raise UnusableAnswerError("no logprobs of generated tokens, which would prove those of prompts")
        logprob = logprob_of(part_of(own, 0))
        top = _by_id(part_of(answer, "meta_info", "output_top_logprobs", 0))
        return Continuation(logprob, max([logprob, *top.values()]), id_of(part_of(own, 1)))


def _request(token_ids: list[int], max_new_tokens: int, num_candidates: int) -> dict[str, Any]:
    return {
        "input_ids": token_ids,
        "sampling_params": {"temperature": 0, "max_new_tokens": max_new_tokens},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": num_candidates,
    }


def _score(place: Any, top: Any, token_id: int, num_candidates: int) -> Score:
    # Its code writes 0 for the last ids of the vocabulary.
    if (found := id_of(part_of(place, 1))) not in (token_id, 0):
        raise UnusableAnswerError(f"a prompt logprob of token {found} in place of {token_id}")
    by_id = _by_id(top)
    best = max(by_id.values(), default=None)
    return Score(logprob_of(part_of(place, 0)), best, candidates_of(by_id, token_id, num_candidates))


def _by_id(place: Any) -> dict[int, float]:
    entries = place if isinstance(place, list) else []
    return {id_of(part_of(entry, 1)): logprob_of(part_of(entry, 0)) for entry in entries}
