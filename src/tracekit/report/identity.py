"""What a trace is, in a few properties: where its rows come from, and the configuration behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracekit.store import Trace

# The columns of `runs` that tell two traces apart, in the order in which they are shown.
_CONFIGURATION = (
    "backend",
    "mode",
    "model",
    "dtype",
    "head_weight_dtype",
    "head_operand_dtype",
    "head_output_dtype",
    "logprobs_mode",
    "prefix_caching",
    "async_scheduling",
    "chunked_prefill",
    "max_num_batched_tokens",
    "max_num_seqs",
    "tp_size",
    "dp_size",
    "pp_size",
    "ep_size",
    "attention_backend",
    "quantization",
    "kv_cache_dtype",
    "seed",
    "device",
    "torch_version",
    "num_threads",
)


@dataclass(frozen=True)
class Identity:
    """A trace's properties, in the order in which they are shown; those that no writer knew are left out."""

    properties: Mapping[str, str]


def identify(trace: Trace, runs: Sequence[Mapping[str, Any]]) -> Identity:
    """Sums up the writers of a trace.

    Args:
        trace: the trace.
        runs: rows of its table `runs`; values on which they disagree are shown side by side.
    """
    properties = {"trace": str(trace.path), "role": trace.manifest.role}
    engines = [
        " ".join(str(part) for part in (run["engine"], run["engine_version"], run["engine_generation"]) if part)
        for run in runs
    ]
    columns = [("engine", engines), *((name, [run[name] for run in runs]) for name in _CONFIGURATION)]
    for name, values in columns:
        known = dict.fromkeys(str(value) for value in values if value is not None and value != "")
        if known:
            properties[name] = ", ".join(sorted(known))
    return Identity(properties)
