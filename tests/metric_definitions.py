"""The field's metrics as they are defined, in NumPy's 80-bit floats: what the SQL library is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

X = np.longdouble
Array = np.ndarray


@dataclass(frozen=True)
class Pairs:
    """One request's pairs: logprobs of both sides, equality of first candidates, advantages (NaN: none)."""

    a: Array
    b: Array
    same: Array
    advantage: Array

    @property
    def d(self) -> Array:
        return self.b - self.a


def sequence(a: Sequence[float], b: Sequence[float], same: Sequence[bool], advantage: Sequence[float]) -> Pairs:
    """Returns a sequence; logprobs are taken as float32, as traces store them."""
    wide = [np.asarray(side, np.float32).astype(X) for side in (a, b)]
    return Pairs(*wide, np.asarray(same, bool), np.asarray(advantage, np.float32).astype(X))


def figures(sequences: Sequence[Pairs]) -> dict[str, X | None]:
    """Returns every metric by name; None where it is of no token."""
    with np.errstate(all="ignore"):
        return _figures(sequences)


def _figures(sequences: Sequence[Pairs]) -> dict[str, X | None]:
    d = np.concatenate([s.d for s in sequences])
    a, b = (np.concatenate([getattr(s, side) for s in sequences]) for side in "ab")
    same = np.concatenate([s.same for s in sequences])
    advantage = np.concatenate([s.advantage for s in sequences])
    rho, pa, pb = np.exp(d), np.exp(a), np.exp(b)
    k3, k3_reversed = np.expm1(d) - d, np.expm1(-d) + d
    by = [s.d for s in sequences]
    means = np.array([s.mean() for s in by])
    sums = np.array([s.sum() for s in by])
    known = ~np.isnan(advantage)
    up, down = known & (advantage > 0), known & (advantage < 0)
    gspo = [s for s in sequences if (~np.isnan(s.advantage)).any()]
    gspo_sign = np.array([np.nansum(s.advantage) for s in gspo])
    gspo_mean = np.array([s.d.mean() for s in gspo])
    tis = np.minimum(rho, X(2))
    half = np.abs(d) / 2
    num = X(d.size)
    found = {
        "kl": -d.mean(),
        "k2_kl": (d * d).mean() / 2,
        "k3_kl": k3.mean(),
        "k3_kl_seq": np.mean([(np.expm1(s) - s).mean() for s in by]),
        "policy_kl_error": k3_reversed.mean(),
        "kl_reversed": np.where(np.isneginf(d), X(1), rho * d - np.expm1(d)).mean(),
        "js_divergence_error": (half + np.log1p(np.exp(-2 * half)) - np.log(X(2))).mean(),
        "token_mult_prob_error": np.exp(np.abs(d)).mean(),
        "logprob_abs_diff_mean": np.abs(d).mean(),
        "logprob_abs_diff_max": np.abs(d).max(),
        "logprob_abs_diff_seq_mean": np.mean([np.abs(s).mean() for s in by]),
        "logprob_abs_diff_over_0_001": (np.abs(d) > 0.001).mean(dtype=X),
        "logprob_abs_diff_over_0_01": (np.abs(d) > 0.01).mean(dtype=X),
        "logprob_abs_diff_over_0_1": (np.abs(d) > 0.1).mean(dtype=X),
        "logprob_abs_diff_over_1": (np.abs(d) > 1).mean(dtype=X),
        "excluded_fraction": np.isneginf(d).mean(dtype=X),
        "probs_diff_mean": np.abs(pb - pa).mean(),
        "probs_diff_max": np.abs(pb - pa).max(),
        "probs_diff_std": np.abs(pb - pa).std(ddof=1) if d.size > 1 else None,
        "probs_pearson_correlation": _correlation(pa, pb),
        "delta_p_mean": (pb - pa).mean(),
        "delta_p_rms": np.sqrt(((pb - pa) ** 2).mean()),
        "ppl_a": np.exp(-a.mean()),
        "ppl_b": np.exp(-b.mean()),
        "logprob_pearson_correlation": _correlation(a, b),
        "ppl_ratio": np.exp(-means).mean(),
        "log_ppl_diff": -means.mean(),
        "log_ppl_abs_diff": np.abs(means).mean(),
        "chi2_token": np.expm1(2 * d).mean(),
        "chi2_seq": np.expm1(2 * sums).mean(),
        "sampling_importance_ratio": rho.mean(),
        "effective_sample_size": rho.sum() ** 2 / (num * (rho**2).sum()),
        "effective_sample_size_truncated": tis.sum() ** 2 / (num * (tis**2).sum()),
        "ratio_oob_fraction": ((rho < X("0.8")) | (rho > X("1.2"))).mean(dtype=X),
        "clip_fraction_ppo": _share((up & (rho > X("1.2"))) | (down & (rho < X("0.8"))), known),
        "clip_fraction_dapo": _share((up & (rho > X("1.28"))) | (down & (rho < X("0.8"))), known),
        "clip_fraction_gspo": _share(
            ((gspo_sign > 0) & (np.exp(gspo_mean) > X("1.0004")))
            | ((gspo_sign < 0) & (np.exp(gspo_mean) < X("0.9997"))),
            np.ones(len(gspo), bool),
        ),
        "tis_mean": tis.mean(),
        "tis_truncated_fraction": (rho > 2).mean(dtype=X),
        "tis_truncated_fraction_3": (rho > 3).mean(dtype=X),
        "mis_masked_fraction": (np.exp(sums) > 3).mean(dtype=X),
        "icepop_masked_fraction": ((rho < X("0.5")) | (rho > 5)).mean(dtype=X),
        "geometric_masked_fraction": ((np.exp(means) < X("0.999")) | (np.exp(means) > X("1.002"))).mean(dtype=X),
        "dppo_tv_masked_fraction": _share((up & (pb - pa > X("0.2"))) | (down & (pb - pa < X("-0.2"))), known),
        "veto_fraction": np.mean([(np.exp(s) < X("1e-4")).any() for s in by], dtype=X),
        "same_top_p": same.mean(dtype=X),
        "flip_rate": 1 - same.mean(dtype=X),
    }
    return {name: None if value is None or np.isnan(value) else value for name, value in found.items()}


def _correlation(x: Array, y: Array) -> X | None:
    u, v = x - x.mean(), y - y.mean()
    spread = np.sqrt((u * u).sum() * (v * v).sum())
    return (u * v).sum() / spread if spread > 0 else None


def _share(of: Array, among: Array) -> X | None:
    return X(of.sum()) / X(among.sum()) if among.sum() else None
