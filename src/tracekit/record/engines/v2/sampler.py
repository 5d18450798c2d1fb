"""Hooks of Model Runner V2's samplers: what they are given, what they draw from, and what they return."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from tracekit.record.capture import Drawn
from tracekit.record.engines.hook import Watched, noting
from tracekit.record.engines.patching import wrap

# Kernels that truncate and draw at once: nobody ever sees the truncated distribution.
_FUSED = ("flashinfer", "xpu")


@dataclass
class Sampling(Watched):
    """What the samplers show in one step, on this rank.

    None of it is copied that the engine leaves alone. The head puts out new logits in each step, and the samplers
    work on a float32 copy of them, or read them; a grammar's mask alone is applied in place.

    Attributes:
        hidden_LH: what the head was given, gathered for it; None where it was given more rows than this rank samples.
        raw_LV: the logits before the grammar's mask; None where the sampler was not called.
        masked_LV: the same after it; None where no grammar was active.
        batch: the engine's InputBatch of the rows that this rank samples.
        output: the engine's SamplerOutput of these rows.
        drawn: pieces of the distribution that tokens are drawn from.
        backend: the code that draws, as in `steps.sampler_backend`.
        num_checked: logits rows that the rejection sampler has taken up; None outside of it.
    """

    hidden_LH: Tensor | None = None
    raw_LV: Tensor | None = None
    masked_LV: Tensor | None = None
    batch: Any = None
    output: Any = None
    drawn: list[Drawn] = field(default_factory=list)
    backend: str | None = None
    num_checked: int | None = None


# The step that is being sampled: neither model nor sampler knows its runner. One thread samples in a worker.
_current: Sampling | None = None


def watch(sampling: Sampling | None) -> None:
    """Has the hooks below note what they see there; None ends it."""
    global _current
    _current = sampling


def watch_head(model: Any) -> None:
    """Has what the model's head is given noted too."""
    wrap(type(model), "compute_logits", _around_compute_logits)


def _patch_sampler(module: ModuleType) -> None:
    wrap(module.Sampler, "__call__", _around_call)
    wrap(module.Sampler, "sample", _around_sample)
    wrap(module.Sampler, "apply_sampling_params", _around_sampling_params)
    wrap(module, "gumbel_sample", _around_gumbel)
    wrap(module, "flashinfer_sample", _around_flashinfer)
    wrap(module, "xpu_sample", _around_xpu)


def _patch_rejection(module: ModuleType) -> None:
    wrap(module.RejectionSampler, "__call__", _around_rejection)


def _patch_grammar(module: ModuleType) -> None:
    wrap(module.StructuredOutputsWorker, "apply_grammar_bitmask", _around_bitmask)


HOOKS = {
    "vllm.v1.worker.gpu.sample.sampler": _patch_sampler,
    "vllm.v1.worker.gpu.spec_decode.rejection_sampler": _patch_rejection,
    "vllm.v1.worker.gpu.structured_outputs": _patch_grammar,
}


# --- the head, and the grammar's mask ---


def _around_compute_logits(original: Any, model: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    if _current is not None:
        _current.hidden_LH = hidden_states
    return original(model, hidden_states, *args, **kwargs)


def _around_bitmask(original: Any, worker: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
    if _current is not None:
        _see_mask(_current, logits)
    return original(worker, logits, *args, **kwargs)


@noting
def _see_mask(sampling: Sampling, logits: Tensor) -> None:
    sampling.masked_LV = logits
    sampling.raw_LV = logits.clone()


# --- what is drawn from ---


def _around_sample(original: Any, sampler: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(sampler, logits, *args, **kwargs)
    if _current is not None:
        _see_sample(_current, result)
    return result


@noting
def _see_sample(sampling: Sampling, result: tuple[Tensor, Tensor]) -> None:
    _, drawn_from_LV = result
    sampling.drawn.append(Drawn(drawn_from_LV, truncated=sampling.backend not in _FUSED))


def _around_sampling_params(original: Any, sampler: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
    processed_PV = original(sampler, logits, *args, **kwargs)
    if _current is not None and _current.num_checked is not None:
        _see_checked(_current, processed_PV)
    return processed_PV


@noting
def _see_checked(sampling: Sampling, processed_PV: Tensor) -> None:
    # The rejection sampler works through the rows in chunks, in their order.
    first = sampling.num_checked or 0
    sampling.num_checked = first + len(processed_PV)
    sampling.drawn.append(Drawn(processed_PV, np.arange(first, sampling.num_checked)))


def _around_gumbel(original: Any, *args: Any, **kwargs: Any) -> Any:
    return _drawn_by("gumbel", original, *args, **kwargs)


def _around_flashinfer(original: Any, *args: Any, **kwargs: Any) -> Any:
    return _drawn_by("flashinfer", original, *args, **kwargs)


def _around_xpu(original: Any, *args: Any, **kwargs: Any) -> Any:
    return _drawn_by("xpu", original, *args, **kwargs)


def _drawn_by(backend: str, original: Any, *args: Any, **kwargs: Any) -> Any:
    if _current is not None:
        _current.backend = backend
    return original(*args, **kwargs)


# --- what comes of it ---


def _around_call(original: Any, sampler: Any, logits: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
    output = original(sampler, logits, input_batch, *args, **kwargs)
    if _current is not None:
        _current.batch, _current.output = input_batch, output
        if _current.masked_LV is None:
            _current.raw_LV = logits
    return output


def _around_rejection(original: Any, sampler: Any, logits: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
    if _current is not None:
        _current.num_checked, _current.backend = 0, "rejection"
    return _around_call(original, sampler, logits, input_batch, *args, **kwargs)
