"""Makes an engine sample the tokens that a request gives: see `forced`. Hooked only where a replay asks for it.

What the engine drew is overwritten after it was sampled, so raw and processed distributions stay what they are.
Model Runner V2 needs none of this: it replays traces itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch

from tracekit.errors import RecorderError
from tracekit.record.engines.patching import when_imported, wrap
from tracekit.record.forced import KEY

SWITCH = "TRACEKIT_FORCE_TOKENS"

_SCHEDULED = "_tracekit_scheduled"


def attach() -> None:
    """Hooks in where the environment asks for it; before any other hook, which is then to see the given tokens."""
    if os.environ.get(SWITCH) == "1":
        when_imported("vllm.v1.worker.gpu_model_runner", _patch_runner)
        when_imported("vllm.model_executor.layers.sampler", _patch_v0_sampler)


def _patch_runner(module: ModuleType) -> None:
    wrap(module.GPUModelRunner, "execute_model", _around_execute_model)
    wrap(module.GPUModelRunner, "_sample", _around_sample)


def _patch_v0_sampler(module: ModuleType) -> None:
    if hasattr(module, "_sample"):  # later generations have a module of this name too
        wrap(module, "_sample", _around_v0_sample)


def _given_token(params: Any, position: int) -> int | None:
    """Returns the token that a request gives for a place of its sequence.

    There is none in the middle of a prompt, whose sample is thrown away, and behind the last given token.
    """
    asked: Mapping[str, Any] | None = (getattr(params, "extra_args", None) or {}).get(KEY)
    if asked is None:
        return None
    token_ids: list[int] = asked["token_ids"]
    index = position - asked["num_prompt_tokens"]
    return token_ids[index] if 0 <= index < len(token_ids) else None


def _around_execute_model(original: Any, runner: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
    setattr(runner, _SCHEDULED, scheduler_output.num_scheduled_tokens)
    return original(runner, scheduler_output, *args, **kwargs)


def _around_sample(original: Any, runner: Any, logits: Any, spec_metadata: Any, *args: Any, **kwargs: Any) -> Any:
    output = original(runner, logits, spec_metadata, *args, **kwargs)
    rows, ids = [], []
    batch, scheduled = runner.input_batch, getattr(runner, _SCHEDULED)
    for row, request_id in enumerate(batch.req_ids):
        position = int(batch.num_computed_tokens_cpu[row]) + scheduled[request_id]
        token_id = _given_token(runner.requests[request_id].sampling_params, position)
        if token_id is not None:
            rows.append(row)
            ids.append(token_id)
    if rows:
        if spec_metadata is not None:
            raise RecorderError("tokens cannot be given under speculative decoding; replay without it")
        sampled_BD = output.sampled_token_ids
        sampled_BD[torch.tensor(rows, device=sampled_BD.device), 0] = torch.tensor(
            ids, dtype=sampled_BD.dtype, device=sampled_BD.device
        )
    return output


def _around_v0_sample(original: Any, probs: Any, logprobs: Any, metadata: Any, *args: Any, **kwargs: Any) -> Any:
    results, tensor = original(probs, logprobs, metadata, *args, **kwargs)
    if not isinstance(results, list):
        raise RecorderError("tokens cannot be given where V0 samples several steps ahead; replay without that")
    for group, (token_ids, _) in zip(metadata.seq_groups, results, strict=True):
        (data,) = group.seq_data.values()
        token_id = _given_token(group.sampling_params, data.get_len())
        if token_ids and token_id is not None:
            token_ids[0] = token_id
            if tensor is not None:
                tensor[group.sample_indices[0], 0] = token_id
    return results, tensor
