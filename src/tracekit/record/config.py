"""What to record: one frozen configuration, whichever sources its settings come from."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tracekit.errors import ConfigError
from tracekit.record.predicate import parse_predicate

# It becomes part of file names.
_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LEAST = {"top_k": 0, "first": 0, "max_queue_mib": 0, "flush_seconds": 0.0, "part_mib": 1}


@dataclass(frozen=True)
class RecordConfig:
    """Settings of the recorder; `settings.py` reads them from options, environment, file and engine.

    Attributes:
        trace: the trace directory.
        session: shared by all processes of one recording.
        top_k: candidates kept a token; 0 keeps none.
        hidden: also keep the final hidden states, from which whole logits can be computed again.
        logits: also keep whole rows of raw logits.
        checksums: also keep checksums of head and embedding when weights change.
        share: the part of all requests to record, 0 to 1, chosen by trajectory, group or prompt.
        first: the most requests to record of each engine process; None for no limit.
        where: an expression over a request's parameters, see `predicate.py`; None for all requests.
        append: record into the trace where it exists already.
        strict: failures of the recorder are raised into the engine. For tests only.
        max_queue_mib: most memory that captured rows may hold while they wait for the writer; beyond it rows
            are dropped, counted, and reported in the trace.
        flush_seconds: longest time a row stays out of the journal.
        part_mib: Arrow MiB of one table that make a Parquet part.

    Raises:
        ConfigError: a value that is out of range, or an expression that cannot be parsed.
    """

    trace: str
    session: str = field(default_factory=lambda: new_session())
    top_k: int = 20
    hidden: bool = False
    logits: bool = False
    checksums: bool = False
    share: float = 1.0
    first: int | None = None
    where: str | None = None
    append: bool = False
    strict: bool = False
    max_queue_mib: int = 512
    flush_seconds: float = 1.0
    part_mib: int = 32

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            check_range(name, value, "the recorder's configuration")

    def to_env(self) -> dict[str, str]:
        """Returns the environment variables that hand this configuration to a child process."""
        from tracekit.record.settings import to_environment

        return to_environment(asdict(self))

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> RecordConfig | None:
        """Reads the configuration from the environment; None where recording was not asked for.

        Raises:
            ConfigError: a setting that is not known, or whose value does not fit.
        """
        from tracekit.record.settings import from_environment

        given = from_environment(environ)
        return cls(**given) if "trace" in given else None


def new_session() -> str:
    """Returns a name for a recording that no other one has."""
    return uuid.uuid4().hex[:8]


def check_range(name: str, value: Any, source: str) -> None:
    """Checks one setting whose type is right already.

    Raises:
        ConfigError: it is out of range, or cannot be parsed.
    """
    if value is None:
        return
    least = _LEAST.get(name)
    if least is not None and not least <= value < math.inf:
        raise ConfigError(f"{source}: '{name}' is {value}, but must be at least {least}, and finite")
    if name == "session" and not _SESSION.fullmatch(value):
        raise ConfigError(f"{source}: 'session' is {value!r}, but must be 1 to 64 letters, digits, '_' or '-'")
    if name == "share" and not 0 <= value <= 1:
        raise ConfigError(f"{source}: 'share' is {value}, but must be between 0 and 1")
    if name == "where":
        try:
            parse_predicate(value)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
