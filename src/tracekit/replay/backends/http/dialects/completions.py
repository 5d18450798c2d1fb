"""What is common to servers with OpenAI's completions API."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tracekit.replay.backends.http.answers import Continuation, UnusableAnswerError, logprob_of, part_of

PATH = "/v1/completions"

# Stands for minus infinity, which JSON does not have.
_LEAST_LOGPROB = -9999.0

_TOKEN_ID = re.compile(r"token_id:(\d+)")


def greedy_request(model: str, token_ids: list[int]) -> dict[str, Any]:
    """Returns the body of a request that appends one token, the most likely one as the model has it."""
    return {
        "model": model,
        "prompt": token_ids,
        "max_tokens": 1,
        "temperature": 0,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
    }


def completion_logprob(value: Any) -> float:
    """Returns a logprob of an answer.

    Raises:
        UnusableAnswerError: it is none.
    """
    logprob = logprob_of(value)
    return float("-inf") if logprob <= _LEAST_LOGPROB else logprob


def generated_token(answer: Any) -> Continuation:
    """Returns what an answer says of the first token that was generated.

    Raises:
        UnusableAnswerError: it does not tell a logprob.
    """
    logprobs = part_of(answer, "choices", 0, "logprobs")
    own = part_of(logprobs, "token_logprobs", 0)
    top = part_of(logprobs, "top_logprobs", 0)
    if own is None or not isinstance(top, dict):
        raise UnusableAnswerError("no logprobs of generated tokens, which would prove those of prompts")
    ids = named_ids([part_of(logprobs, "tokens", 0)])
    best = max(map(completion_logprob, [own, *top.values()]))
    return Continuation(completion_logprob(own), best, None if ids is None else ids[0])


def named_ids(tokens: Iterable[Any]) -> list[int] | None:
    """Returns the ids of tokens that are all given as 'token_id:123'; None where they are texts."""
    found = [_TOKEN_ID.fullmatch(token) if isinstance(token, str) else None for token in tokens]
    ids = [int(match[1]) for match in found if match is not None]
    return ids if len(ids) == len(found) else None
