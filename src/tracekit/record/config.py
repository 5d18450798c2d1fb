"""What to record: one frozen configuration, filled from options or from the environment."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tracekit.errors import ConfigError, nearest

SWITCH = "TRACEKIT_RECORD"
_PREFIX = f"{SWITCH}_"


@dataclass(frozen=True)
class RecordConfig:
    """Settings of the recorder.

    Attributes:
        trace: the trace directory; it must exist already (`create_trace` makes one).
        session: shared by all processes that one `tracekit record` or `recording` starts.
        top_k: candidates kept a token; 0 keeps none.
        hidden: also keep the final hidden states, from which whole logits can be computed again.
        logits: also keep whole rows of raw logits.
        strict: failures of the recorder are raised into the engine. For tests only.
        max_queue_mib: most memory that captured rows may hold while they wait for the writer; beyond it rows
            are dropped, counted, and reported in the trace.
        flush_seconds: longest time a row stays out of the journal.
        part_mib: Arrow MiB of one table that make a Parquet part.
    """

    trace: str
    session: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    top_k: int = 20
    hidden: bool = False
    logits: bool = False
    strict: bool = False
    max_queue_mib: int = 512
    flush_seconds: float = 1.0
    part_mib: int = 32

    def __post_init__(self) -> None:
        for name, least in (("top_k", 0), ("max_queue_mib", 0), ("flush_seconds", 0.0), ("part_mib", 1)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"recorder setting '{name}' is {value}, but must be at least {least}")

    def to_env(self) -> dict[str, str]:
        """Returns the environment variables that hand this configuration to a child process."""
        settings = asdict(self)
        switch = {SWITCH: str(settings.pop("trace"))}
        return switch | {_PREFIX + name.upper(): str(value) for name, value in settings.items()}

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> RecordConfig | None:
        """Reads the configuration from the environment; None where recording was not asked for.

        Raises:
            ConfigError: a setting that is not known, or whose value does not fit.
        """
        if not environ.get(SWITCH):
            return None
        settings: dict[str, Any] = {"trace": environ[SWITCH]}
        kinds = {f.name: str(f.type) for f in fields(cls) if f.name != "trace"}
        for variable, text in environ.items():
            if not variable.startswith(_PREFIX):
                continue
            name = variable.removeprefix(_PREFIX).lower()
            if name not in kinds:
                raise ConfigError(f"environment variable {variable}: no such recorder setting{nearest(name, kinds)}")
            settings[name] = _parse(variable, text, kinds[name])
        return cls(**settings)


def _parse(variable: str, text: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return {"int": int, "float": float, "str": str}[kind](text)
    except (ValueError, KeyError):
        raise ConfigError(f"environment variable {variable} is '{text}', but a {kind} was expected") from None
