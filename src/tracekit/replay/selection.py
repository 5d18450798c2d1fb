"""Which requests of a trace are scored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from tracekit.errors import ConfigError
from tracekit.replay.parent import Key


@dataclass(frozen=True)
class Selection:
    """Narrows requests down, each setting among those that the one before left.

    Attributes:
        only: these.
        sample: so many, chosen by a hash of their ids: the same ones in every replay of a trace.
        limit: the first so many.

    Raises:
        ConfigError: a number under 1.
    """

    only: frozenset[Key] | None = None
    sample: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("sample", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")

    def __call__(self, keys: list[Key]) -> list[Key]:
        """Returns the chosen ones, in the order they are given in."""
        if self.only is not None:
            keys = [key for key in keys if key in self.only]
        if self.sample is not None:
            chosen = frozenset(sorted(keys, key=_hash)[: self.sample])
            keys = [key for key in keys if key in chosen]
        return keys[: self.limit]

    def described(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        return {"num_only": None if self.only is None else len(self.only), "sample": self.sample, "limit": self.limit}


def _hash(key: Key) -> bytes:
    return hashlib.blake2b("\0".join(key).encode(), digest_size=8).digest()
