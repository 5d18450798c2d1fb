"""How much memory, how many threads and which folder a computation that leaves memory may use."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tracekit.errors import ConfigError

__all__ = ["Limits"]

_UNITS = {
    **{f"{p}b": 1000**i for i, p in enumerate("kmgt", 1)},
    **{f"{p}ib": 1024**i for i, p in enumerate("kmgt", 1)},
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?b)\s*", re.IGNORECASE)
_LEAST_BYTES = 64_000_000


@dataclass(frozen=True)
class Limits:
    """What a computation may use; None leaves it to who computes.

    Attributes:
        memory_limit: like '4GB' or '512MiB', at least 64MB.
        threads: at least 1.
        temp_dir: an existing folder for what does not fit the memory.

    Raises:
        ConfigError: a value that cannot be used.
    """

    memory_limit: str | None = None
    threads: int | None = None
    temp_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.memory_limit is not None and (self.memory_bytes or 0) < _LEAST_BYTES:
            raise ConfigError(f"memory limit '{self.memory_limit}' is too small; give at least 64MB")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"{self.threads} threads cannot compute; give at least 1")
        if self.temp_dir is not None:
            if not self.temp_dir.is_dir():
                raise ConfigError(f"{self.temp_dir} is no folder for temporary files; make it, or name another one")
            if not os.access(self.temp_dir, os.W_OK | os.X_OK):
                raise ConfigError(f"{self.temp_dir} cannot be written to; name another folder for temporary files")

    @property
    def memory_bytes(self) -> int | None:
        """The memory limit in bytes.

        Raises:
            ConfigError: it is not like '4GB'.
        """
        if self.memory_limit is None:
            return None
        match = _SIZE.fullmatch(self.memory_limit)
        if match is None:
            raise ConfigError(
                f"memory limit '{self.memory_limit}' is not a number and a unit (KB, MB, GB, TB, KiB, MiB, GiB, TiB); "
                "give one like '4GB' or '512MiB'"
            )
        return int(float(match[1]) * _UNITS[match[2].lower()])
