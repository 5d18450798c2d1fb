"""Hooks of the V1 sampler: the distribution that tokens are drawn from, read off as it passes by."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import Tensor

from tracekit.record.capture import Drawn, Ints
from tracekit.record.engines.hook import Watched, noting
from tracekit.record.engines.patching import wrap

# vLLM's, of which all parameters are recorded.
_OWN_PROCESSORS = "vllm.v1.sample.logits_processor.builtin"
# vLLM's _SAMPLING_EPS.
_GREEDY_BELOW = 1e-5


@dataclass
class Sampling(Watched):
    """What the sampler shows in one step.

    Attributes:
        rows: logits rows that `Sampler.sample` is given; None where it is given all of them.
        target_rows: logits rows of drafts that are checked, under speculative decoding.
        drawn: pieces of the distribution, the last of equal rows counts.
        scaled: logits before truncation, where they do not follow from the sampling parameters.
        backend: the code that draws, as in `steps.sampler_backend`.
    """

    rows: Ints | None = None
    target_rows: Ints | None = None
    drawn: list[Drawn] = field(default_factory=list)
    scaled: Tensor | None = None
    backend: str | None = None
    depth: int = 0


# The step that is being sampled: the sampler does not know its runner. One thread samples in a worker.
_current: Sampling | None = None


def watch(sampling: Sampling | None) -> None:
    """Has the hooks below note what they see there; None ends it."""
    global _current
    _current = sampling


def _patch_sampler(module: ModuleType) -> None:
    wrap(module.Sampler, "sample", _around_sampler_sample)


def _patch_truncation(module: ModuleType) -> None:
    for name in ("apply_top_k_top_p", "apply_top_k_top_p_pytorch"):
        # The second is called by the first, or (0.18, on CPUs) instead of it.
        wrap(module, name, _around_truncation)
    wrap(module, "flashinfer_sample", _around_flashinfer)


def _patch_rejection(module: ModuleType) -> None:
    wrap(module, "apply_sampling_constraints", _around_constraints)


HOOKS = {
    "vllm.v1.sample.sampler": _patch_sampler,
    "vllm.v1.sample.ops.topk_topp_sampler": _patch_truncation,
    "vllm.v1.sample.rejection_sampler": _patch_rejection,
}


def _around_sampler_sample(original: Any, sampler: Any, logits: Any, metadata: Any, *args: Any, **kwargs: Any) -> Any:
    sampling = _current
    if sampling is None:
        return original(sampler, logits, metadata, *args, **kwargs)
    _see_sampler(sampling, sampler, logits, metadata)
    sampling.depth += 1
    try:
        return original(sampler, logits, metadata, *args, **kwargs)
    finally:
        sampling.depth -= 1


@noting
def _see_sampler(sampling: Sampling, sampler: Any, logits: Any, metadata: Any) -> None:
    if getattr(metadata, "all_greedy", False):
        sampling.drawn.append(Drawn(logits, sampling.rows))
        sampling.backend = "greedy"
    else:
        sampling.backend = _backend_name(sampler)
        if _has_other_processors(metadata):
            is_greedy_P = metadata.temperature < _GREEDY_BELOW
            sampling.scaled = logits / metadata.temperature.masked_fill(is_greedy_P, 1.0).unsqueeze(1)


def _has_other_processors(metadata: Any) -> bool:
    """Whether processors that a user or a plugin brought, or a thinking budget, worked on the logits."""
    budget = getattr(metadata, "thinking_budget_state_holder", None)
    if budget is not None and budget.has_tracked_requests():
        return True
    return any(type(processor).__module__ != _OWN_PROCESSORS for processor in metadata.logitsprocs.all)


def _backend_name(sampler: Any) -> str | None:
    forward = getattr(getattr(sampler, "topk_topp_sampler", None), "forward", None)
    name = getattr(forward, "__name__", None)
    # The CUDA path is native unless FlashInfer is called, which is seen below.
    known = {"forward_cpu": "cpu", "forward_native": "native", "forward_cuda": "native"}
    return None if name is None else known.get(name, name)


def _around_truncation(original: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(*args, **kwargs)
    # The rejection sampler calls it too, for rows that are noted below.
    if _current is not None and _current.depth:
        _see_drawn(_current, result, _current.rows)
    return result


def _around_flashinfer(original: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
    # A fused kernel truncates and draws: it is given the distribution before truncation, and leaves that alone.
    if _current is not None and _current.depth:
        _see_drawn(_current, logits, _current.rows, False)
        _current.backend = "flashinfer"
    return original(logits, *args, **kwargs)


def _around_constraints(original: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(*args, **kwargs)
    if _current is not None and _current.target_rows is not None:
        _see_drawn(_current, result, _current.target_rows)
    return result


@noting
def _see_drawn(sampling: Sampling, logits: Any, rows: Ints | None, truncated: bool = True) -> None:
    last = sampling.drawn[-1] if sampling.drawn else None
    if last is None or last.logits_PV is not logits or last.rows_P is not rows:
        sampling.drawn.append(Drawn(logits, rows, truncated, sampling.scaled if sampling.depth else None))
