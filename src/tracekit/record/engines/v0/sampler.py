"""Hooks of the V0 engine's head and sampler: what passes by between hidden states and sampled tokens.

Shape suffixes: L rows of the logits (prompt positions that are scored, and samples), V vocabulary, H hidden size.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor

from tracekit.record.capture import Drawn
from tracekit.record.engines.hook import Watched, noting
from tracekit.record.engines.patching import wrap


@dataclass
class Passing(Watched):
    """What one step shows on its way through head and sampler.

    Attributes:
        with_hidden: whether hidden states are wanted.
        raw_LV: a copy of the head's output; logits processors, penalties and min_tokens edit it in place.
        hidden_LH: what the head saw.
        scaled_LV: float32 logits after temperature, before truncation; None where nothing truncates.
        truncated_LV: float32 logits after truncation; None where nothing truncates.
        logprobs_LV: the normalised distribution that the sampler draws from and reports.
    """

    with_hidden: bool
    raw_LV: Tensor | None = None
    hidden_LH: Tensor | None = None
    scaled_LV: Tensor | None = None
    truncated_LV: Tensor | None = None
    logprobs_LV: Tensor | None = None

    @property
    def drawn(self) -> tuple[Drawn, ...]:
        """The distribution drawn from, beside what it was before truncation on the same scale."""
        if self.logprobs_LV is None:
            return ()
        if self.truncated_LV is None:
            # Nothing truncates, or a fused kernel does; V0 also ignores a top-p that is all but 1.
            return (Drawn(self.logprobs_LV, truncated=not _is_fused, scaled_PV=self.logprobs_LV),)
        return (Drawn(self.truncated_LV, truncated=not _is_fused, scaled_PV=self.scaled_LV),)

    @property
    def backend(self) -> str:
        """The code that draws, as in `steps.sampler_backend`."""
        return "flashinfer" if _is_fused else "native"


# The head and the sampler do not know their runner, whose step runs in one thread.
_local = threading.local()

# Whether FlashInfer truncates and draws in one kernel, which never makes the truncated distribution.
_is_fused = False


def watch(passing: Passing | None) -> None:
    """Has the hooks below note what they see in this thread; None ends it."""
    _local.passing = passing


def _passing() -> Passing | None:
    passing: Passing | None = getattr(_local, "passing", None)
    return passing


def _patch_head(module: ModuleType) -> None:
    if hasattr(module, "_apply_logits_processors"):  # later generations have a head of this name too
        wrap(module, "_prune_hidden_states", _around_pruning)
        wrap(module, "_apply_logits_processors", _around_logits_processors)


def _patch_sampler(module: ModuleType) -> None:
    global _is_fused
    _is_fused = module.flashinfer_top_k_top_p_sampling is not None
    wrap(module, "_apply_top_k_top_p", _around_top_k_top_p)
    wrap(module, "_apply_min_p", _around_min_p)
    wrap(module, "_sample", _around_sample)


HOOKS = {
    "vllm.model_executor.layers.logits_processor": _patch_head,
    "vllm.model_executor.layers.sampler": _patch_sampler,
}


def _around_pruning(original: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(*args, **kwargs)
    passing = _passing()
    if passing is not None and passing.with_hidden:
        passing.hidden_LH = result
    return result


def _around_logits_processors(original: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
    passing = _passing()
    if passing is not None:
        _see_head(passing, logits)
    return original(logits, *args, **kwargs)


def _around_top_k_top_p(original: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(logits, *args, **kwargs)
    passing = _passing()
    if passing is not None:
        passing.scaled_LV, passing.truncated_LV = logits, result
    return result


def _around_min_p(original: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
    passing = _passing()
    if passing is not None and passing.scaled_LV is None:
        _see_scaled(passing, logits)
    result = original(logits, *args, **kwargs)
    if passing is not None:
        passing.truncated_LV = result
    return result


def _around_sample(original: Any, probs: Any, logprobs: Any, *args: Any, **kwargs: Any) -> Any:
    passing = _passing()
    if passing is not None:
        passing.logprobs_LV = logprobs
    return original(probs, logprobs, *args, **kwargs)


@noting
def _see_head(passing: Passing, logits: Tensor) -> None:
    passing.raw_LV = logits.clone()


@noting
def _see_scaled(passing: Passing, logits: Tensor) -> None:
    # Min-p works on it in place.
    passing.scaled_LV = logits.clone()
