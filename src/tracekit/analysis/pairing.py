"""How the requests of two traces are to be paired, as callers say it."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.errors import ConfigError, nearest

# As callers name them: the short names, and those that `Alignment.method` has.
METHODS = ("request", "external", "prompt", "request_id", "external_id")


@dataclass(frozen=True)
class Pairing:
    """How the requests of two traces are to be paired.

    Attributes:
        method: 'request', 'external' or 'prompt' ('request_id' and 'external_id' mean the same); None for the first
            that fits.
        partial: one trace may hold only a part of the other's requests.
        any_tokenizer: the tokenizers' files may differ.
        policy, trainer_step: which pass of a trainer's trace; None for the one nearest to the rollout.

    Raises:
        ConfigError: an unknown method.
    """

    method: str | None = None
    partial: bool = False
    any_tokenizer: bool = False
    policy: str | None = None
    trainer_step: int | None = None

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in METHODS:
            raise ConfigError(f"no alignment '{self.method}'{nearest(self.method, METHODS)}")
