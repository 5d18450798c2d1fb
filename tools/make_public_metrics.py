"""Writes tests/public_metrics: what the code of verl, TRL and SkyRL computes of the numbers in tests/public_inputs.py.

    .venv/bin/pip install --no-deps --target FOLDER -r tools/public_metrics.txt
    PYTHONPATH=FOLDER .venv/bin/python tools/make_public_metrics.py [verl | trl | skyrl]...

Their functions get float64 wherever they keep it. An entry has the metric's name there, the value, and where they hold
what makes it another figure than ours: `rtol`, their rounding; `clamp`, the largest abs(d) (or, with `sums`, abs of a
sequence's sum of d) up to which they do not clamp. A figure is left out where their code fails.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.metadata
import json
import math
import sys
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from public_inputs import Case, cases

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "public_metrics"

# Shares are counted in float32 there, and some ratios are.
_FLOAT32 = 2.0**-22
# Both add 1e-8 to a denominator.
_PADDED = 1e-7
_CLAMP = 20.0

Entry = tuple[str, str, float, dict[str, Any]]


@dataclass(frozen=True)
class Batch:
    """A case, padded as trainers have it: [sequences, tokens]; A is the rollout, B the trained policy."""

    a: torch.Tensor
    b: torch.Tensor
    mask: torch.Tensor
    advantages: torch.Tensor

    @classmethod
    def of(cls, case: Case) -> Batch:
        length = max(map(len, case.a))

        def padded(rows: list[Any]) -> torch.Tensor:
            return torch.tensor(np.stack([np.pad(row, (0, length - len(row))) for row in rows]), dtype=torch.float64)

        mask = padded([np.ones(len(row)) for row in case.a]).long()
        advantages = torch.tensor(case.advantages, dtype=torch.float64)[:, None].expand(mask.shape).clone()
        return cls(padded(case.a), padded(case.b), mask, advantages)


def of_verl(batch: Batch) -> Iterator[Entry]:
    """Rollout correction, the debug metrics, and the clip fractions of policy losses."""
    from verl.trainer.ppo import core_algos, rollout_corr_helper
    from verl.utils.debug.metrics import calculate_debug_metrics
    from verl.workers.config.actor import ActorConfig

    found = rollout_corr_helper.compute_offpolicy_metrics(batch.b, batch.a, batch.mask)
    for name in ("kl", "k3_kl", "ppl_ratio", "log_ppl_diff", "log_ppl_abs_diff"):
        yield name, f"rollout_corr/{name}", found[name], {}
    yield "chi2_token", "rollout_corr/chi2_token", found["chi2_token"], {"clamp": _CLAMP}
    yield "chi2_seq", "rollout_corr/chi2_seq", found["chi2_seq"], {"clamp": _CLAMP, "sums": True}

    def weights(level: str, threshold: float | str) -> dict[str, float]:
        _, metrics = rollout_corr_helper.compute_rollout_correction_weights(
            batch.b - batch.a, batch.mask, level, threshold
        )
        return metrics

    at_2 = weights("token", 2.0)
    name = "rollout_corr/rollout_is_eff_sample_size"
    yield "tis_mean", "rollout_corr/rollout_is_mean", at_2["rollout_is_mean"], {"clamp": _CLAMP}
    yield (
        "effective_sample_size_truncated",
        name,
        at_2["rollout_is_eff_sample_size"],
        {"clamp": _CLAMP, "rtol": _PADDED},
    )
    unbounded = weights("token", 1e300)["rollout_is_eff_sample_size"]
    yield "effective_sample_size", name, unbounded, {"clamp": _CLAMP, "rtol": _PADDED}
    name = "rollout_corr/rollout_is_ratio_fraction_high"
    yield "tis_truncated_fraction", name, at_2["rollout_is_ratio_fraction_high"], {"rtol": _FLOAT32}
    at_3 = weights("token", 3.0)["rollout_is_ratio_fraction_high"]
    yield "tis_truncated_fraction_3", name, at_3, {"rtol": _FLOAT32}
    of_sequences = weights("sequence", 3.0)["rollout_is_ratio_fraction_high"]
    yield "mis_masked_fraction", name, of_sequences, {"rtol": _FLOAT32}
    name = "rollout_corr/rollout_is_oob_ratio"
    # It divides by zero where every token is masked.
    with contextlib.suppress(ZeroDivisionError):
        yield "icepop_masked_fraction", name, weights("token", "0.5_5")["rollout_is_oob_ratio"], {"rtol": _FLOAT32}
    # It bounds 1 / rho.
    bounds = f"{1 / 1.002!r}_{1 / 0.999!r}"
    _, masked = rollout_corr_helper.compute_rollout_rejection_mask(batch.b - batch.a, batch.mask, "seq_mean_k1", bounds)
    name = "rollout_rs_seq_mean_k1_seq_masked_fraction"
    yield "geometric_masked_fraction", f"rollout_corr/{name}", masked[name], {"clamp": _CLAMP, "rtol": _FLOAT32}

    tensors = {"rollout_log_probs": batch.a, "old_log_probs": batch.b, "response_mask": batch.mask}
    debug = calculate_debug_metrics(types.SimpleNamespace(batch=tensors | {"responses": batch.mask}))
    for name in ("probs_diff_mean", "probs_diff_max", "probs_diff_std"):
        yield name, f"training/rollout_{name}", debug[f"training/rollout_{name}"], {}
    name = "training/rollout_actor_probs_pearson_corr"
    yield "probs_pearson_correlation", name, debug[name], {}

    for metric, loss, high in (
        ("clip_fraction_ppo", core_algos.compute_policy_loss_vanilla, 0.2),
        ("clip_fraction_dapo", core_algos.compute_policy_loss_vanilla, 0.28),
        ("dppo_tv_masked_fraction", core_algos.compute_policy_loss_dppo_tv, 0.2),
    ):
        config = ActorConfig(
            strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio_low=0.2, clip_ratio_high=high
        )
        _, metrics = loss(batch.a, batch.b, batch.advantages, batch.mask, config=config)
        yield metric, "actor/pg_clipfrac", metrics["actor/pg_clipfrac"], {"rtol": _FLOAT32}

    for metric, kind in (("kl", "k1"), ("k2_kl", "k2"), ("logprob_abs_diff_mean", "abs")):
        penalty = core_algos.kl_penalty(batch.a, batch.b, kind)
        yield metric, f"kl_penalty {kind}", penalty[batch.mask.bool()].mean().item(), {}
    # It clamps the figure of a token at 10, too.
    penalty = core_algos.kl_penalty(batch.a, batch.b, "k3")
    yield "k3_kl", "kl_penalty k3", penalty[batch.mask.bool()].mean().item(), {"clamp": 2.5}


def of_trl(batch: Batch) -> Iterator[Entry]:
    """The metrics of GRPOTrainer's loss, called with what it reads of a trainer, and no trainer."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    def loss(level: str, current: torch.Tensor, high: float, **inputs: torch.Tensor) -> dict[str, float]:
        of_prompts = torch.zeros(len(batch.mask), 1, dtype=torch.long)
        trainer = types.SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *_, **__: (current, torch.zeros_like(current), None),
            _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
            accelerator=types.SimpleNamespace(gather=lambda x: x, reduce=lambda x, **_: x),
            args=types.SimpleNamespace(use_bias_correction_kl=False, delta=None),
            model=types.SimpleNamespace(training=True),
            importance_sampling_level=level,
            epsilon_low=0.2 if level == "token" else 3e-4,
            epsilon_high=high,
            beta=1.0,
            loss_type="grpo",
            current_gradient_accumulation_steps=1,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            aux_loss_enabled=False,
            use_vllm=False,
            _entropy_bonus_enabled=False,
        )
        tensors = {
            "prompt_ids": of_prompts,
            "prompt_mask": of_prompts,
            "completion_ids": batch.mask,
            "completion_mask": batch.mask,
            "advantages": batch.advantages[:, 0],
            "old_per_token_logps": batch.a,
            "ref_per_token_logps": batch.b,
        }
        GRPOTrainer._compute_loss(trainer, None, tensors | inputs)
        return {name: values[0] for name, values in trainer._metrics["train"].items()}

    yield "k3_kl", "kl (of the policy to the reference)", loss("token", batch.a, 0.2)["kl"], {}
    name = "clip_ratio/region_mean"
    yield "clip_fraction_ppo", name, loss("token", batch.b, 0.2)[name], {"rtol": _FLOAT32}
    yield "clip_fraction_dapo", name, loss("token", batch.b, 0.28)[name], {"rtol": _FLOAT32}
    yield "clip_fraction_gspo", name, loss("sequence", batch.b, 4e-4)[name], {"rtol": _FLOAT32}


def of_skyrl(batch: Batch) -> Iterator[Entry]:
    """Off-policy correction, whose ratios are float32 there, and the difference of logprobs."""
    if sys.version_info < (3, 12):
        # It has pydantic read a TypedDict of `typing`, which takes Python 3.12.
        import typing_extensions

        typing.TypedDict = typing_extensions.TypedDict  # type: ignore[misc]
    from skyrl.backends.skyrl_train.utils.off_policy_correction_utils import compute_off_policy_correction
    from skyrl.backends.skyrl_train.workers.worker_utils import compute_minibatch_rollout_logprob_diff_metrics

    def correction(**settings: Any) -> dict[str, float]:
        off = (
            "tis_ratio_type",
            "sequence_mask_metric",
            *(f"{kind}_is_threshold_{end}" for kind in ("token_mask", "outlier_token") for end in ("low", "high")),
        )
        config = types.SimpleNamespace(**(dict.fromkeys(off) | settings))
        _, found, _ = compute_off_policy_correction(batch.b, batch.a, batch.mask, config)
        return found

    for metric, name, settings in (
        ("sampling_importance_ratio", "is_ratio_mean", {"tis_ratio_type": "token", "token_tis_ratio_clip_high": 2.0}),
        (
            "tis_truncated_fraction",
            "tis_token_clip_high_ratio",
            {"tis_ratio_type": "token", "token_tis_ratio_clip_high": 2.0},
        ),
        (
            "icepop_masked_fraction",
            "token_mask_ratio",
            {"token_mask_is_threshold_low": 0.5, "token_mask_is_threshold_high": 5.0},
        ),
        ("veto_fraction", "outlier_seq_under_low_ratio", {"outlier_token_is_threshold_low": 1e-4}),
        (
            "mis_masked_fraction",
            "product_sequence_mask_masked_ratio",
            {"sequence_mask_metric": "product", "product_mask_low": 0.0, "product_mask_high": 3.0},
        ),
        (
            "geometric_masked_fraction",
            "geo_sequence_mask_masked_ratio",
            {"sequence_mask_metric": "geometric", "geo_mask_low": 0.999, "geo_mask_high": 1.002},
        ),
    ):
        options = {"clamp": _CLAMP} if metric == "sampling_importance_ratio" else {}
        yield metric, name, correction(**settings)[name], options | {"rtol": _FLOAT32}
    difference = compute_minibatch_rollout_logprob_diff_metrics(batch.b, batch.a, batch.mask)
    for metric, suffix in (("logprob_abs_diff_mean", "_mean"), ("logprob_abs_diff_max", "_max")):
        (name,) = (name for name in difference if name.endswith(suffix) and "_sq_" not in name)
        yield metric, name, difference[name], {}


PROJECTS: dict[str, Callable[[Batch], Iterator[Entry]]] = {"verl": of_verl, "trl": of_trl, "skyrl": of_skyrl}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("projects", nargs="*", metavar="PROJECT", choices=[*PROJECTS, []], help="all by default")
    OUT.mkdir(exist_ok=True)
    made = cases()
    for project in parser.parse_args().projects or PROJECTS:
        version = importlib.metadata.version(project)
        head = {"package": project, "version": version, "inputs": {name: case.digest() for name, case in made.items()}}
        lines = [head, *(line for name, case in made.items() for line in _lines(project, name, case))]
        path = OUT / f"{project}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


def _lines(project: str, name: str, case: Case) -> Iterator[dict[str, Any]]:
    for metric, theirs, value, options in PROJECTS[project](Batch.of(case)):
        shown = value if math.isfinite(value) else str(float(value))
        yield {"case": name, "metric": metric, "as": theirs, "value": shown, **options}


if __name__ == "__main__":
    main()
