"""The options of the backend, and what is taken over from the recording."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracekit.errors import ConfigError, ModelError, nearest
from tracekit.replay.checkpoints import named_adapters

# What a trace shows of an environment that may hold keys.
_SECRET = re.compile(r"token|key|secret|passw|auth|credential", re.IGNORECASE)

_MODES = ("decode", "prefill")
_SCHEDULES = (None, "recorded", "single")

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)

# Columns of `runs` that are engine arguments.
ARGUMENTS = {
    "dtype": "dtype",
    "max_model_len": "max_model_len",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_seqs": "max_num_seqs",
    "enable_prefix_caching": "prefix_caching",
    "enable_chunked_prefill": "chunked_prefill",
    "async_scheduling": "async_scheduling",
    "kv_cache_dtype": "kv_cache_dtype",
    "seed": "seed",
}
# Entries of its `engine_config` that are.
_CONFIGURED = {
    "enforce_eager": ("model_config", "enforce_eager"),
    "hf_overrides": ("model_config", "hf_overrides"),
    "block_size": ("cache_config", "block_size"),
    "num_gpu_blocks_override": ("cache_config", "num_gpu_blocks_override"),
    "long_prefill_token_threshold": ("scheduler_config", "long_prefill_token_threshold"),
}


@dataclass(frozen=True)
class VllmOptions:
    """Options of the backend.

    Attributes:
        python: an interpreter that has vLLM and tracekit; by default the one that runs this.
        engine_arg: arguments of the engine, each as 'name=value'; a value is read as JSON where it is some.
        env: variables of the engine's environment, each as 'NAME=value'.
        mode: 'decode' makes the engine sample the recorded tokens one by one; 'prefill' gives them to it with the
            prompt and takes its prompt logprobs.
        schedule: 'recorded' has requests arrive as they did, so that they share batches with the same others;
            'single' runs each alone; by default they run as the engine likes it.
        lora: adapters by the name that requests have, each as 'NAME=PATH', or 'NAME=base' for none.
        batch_tokens: most tokens that are handed to the engine at a time, without `schedule` 'recorded'.
        recorded: the engine of the recording; filled in from the parent.
    """

    python: str | None = None
    engine_arg: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    mode: str = "decode"
    schedule: str | None = None
    lora: tuple[str, ...] = ()
    batch_tokens: int = 1 << 16
    recorded: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises ConfigError for an impossible value."""
        for name, known in (("mode", _MODES), ("schedule", _SCHEDULES)):
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"{name} '{value}' is not known{nearest(str(value), [k for k in known if k])}")
        if self.schedule == "recorded" and self.mode != "decode":
            raise ConfigError(
                "schedule 'recorded' needs --mode decode: prompt logprobs are made in batches of their own"
            )
        if self.batch_tokens < 1:
            raise ConfigError(f"batch-tokens must be at least 1, not {self.batch_tokens}")
        self.engine_arguments()
        self.environment()

    def engine_arguments(self) -> dict[str, Any]:
        """Returns the engine's arguments that were given."""
        given = _pairs("engine-arg", self.engine_arg)
        arguments = {name.lstrip("-").replace("-", "_"): _value(text) for name, text in given.items()}
        ranks = [_rank(folder) for folder in named_adapters(self.lora).values() if folder is not None]
        return ({"enable_lora": True, "max_lora_rank": max(ranks)} if ranks else {}) | arguments

    def environment(self) -> dict[str, str]:
        """Returns the environment variables that were given."""
        return _pairs("env", self.env)

    def without_secrets(self) -> list[str]:
        """Returns `env` with values left out that a trace must not show."""
        return [
            f"{name}=***" if _SECRET.search(name) else f"{name}={value}" for name, value in self.environment().items()
        ]


def recorded_engine(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the release, generation and arguments of the vLLM that recorded; empty where none did."""
    row = next((row for row in runs if row.get("engine") == "vllm"), None)
    if row is None:
        return {}
    arguments = {name: row[column] for name, column in ARGUMENTS.items() if row.get(column) is not None}
    config = json.loads(row.get("engine_config") or "{}")
    for name, (section, entry) in _CONFIGURED.items():
        if (value := (config.get(section) or {}).get(entry)) not in (None, {}):
            arguments[name] = value
    return {
        "version": row.get("engine_version"),
        "generation": row.get("engine_generation"),
        "engine_arguments": arguments,
        "num_threads": row.get("num_threads"),
    }


def recorded_top_k(runs: Sequence[Mapping[str, Any]]) -> int | None:
    """Returns how many candidates the parent has a token; None where it does not tell."""
    for row in runs:
        for column in ("capture_config", "options"):
            top_k = json.loads(row.get(column) or "{}").get("top_k")
            if isinstance(top_k, int):
                return top_k
    return None


def _rank(adapter: Path) -> int:
    """Returns the rank of a LoRA adapter, rounded up to one that vLLM has kernels for."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        rank = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{adapter} is no folder of a LoRA adapter: its adapter_config.json cannot be read") from error
    return next((known for known in _RANKS if known >= rank), rank)


def _pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigError(f"{option} '{text}' is not of the kind NAME=VALUE")
        found[name] = value
    return found


def _value(text: str) -> Any:
    for candidate in (text, text.lower()):
        try:
            return json.loads(candidate)
        except ValueError:
            continue
    return text
