"""The contract of a dialect: how a server is asked for logprobs of given tokens, and what its answer says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from tracekit.replay.backends.http.answers import Continuation, Score

__all__ = ["Dialect"]


class Dialect(ABC):
    """One way to ask.

    Attributes:
        name: what options call it.
        path: where requests go, below the server's root.
    """

    name: ClassVar[str]
    path: ClassVar[str]

    @abstractmethod
    def scoring(self, model: str, token_ids: list[int], num_candidates: int) -> dict[str, Any]:
        """Returns the body of a request for the logprobs of given tokens, with so many candidates for each."""

    @abstractmethod
    def scores(self, answer: Any, token_ids: list[int], first: int, num_candidates: int) -> list[Score]:
        """Returns what the answer to such a request says of token_ids[first:].

        Args:
            answer: parsed JSON.
            token_ids: the tokens that were sent.
            first: at least 1, as nothing predicts the first token.
            num_candidates: how many were asked for.

        Raises:
            UnusableAnswerError: the answer does not tell the logprobs of exactly these tokens.
        """

    @abstractmethod
    def continuing(self, model: str, token_ids: list[int]) -> dict[str, Any]:
        """Returns the body of a request for the one greedy token after a prompt."""

    @abstractmethod
    def continuation(self, answer: Any) -> Continuation:
        """Returns what the answer to such a request says.

        Raises:
            UnusableAnswerError: it does not tell a logprob.
        """
