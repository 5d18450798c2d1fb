"""Causes planted between two traces are named first, with what was planted; between equal ones none is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import explained_pairs as made
from explained_pairs import NUM_PROMPT, NUM_REQUESTS, NUM_TOKENS, Side
from tracekit import connect
from tracekit.analysis.explain import Explanation, explain
from tracekit.analysis.explain.registry import causes
from tracekit.cli.main import cli
from tracekit.errors import InputError

SHAPE = (NUM_REQUESTS, NUM_TOKENS)
POSITION = NUM_PROMPT + np.tile(np.arange(NUM_TOKENS), (NUM_REQUESTS, 1))
STEP = np.tile(np.arange(NUM_TOKENS), (NUM_REQUESTS, 1))
HALF = np.arange(NUM_REQUESTS) % 2 == 1


@dataclass(frozen=True)
class Planted:
    """A pair of sides, what is at work between them, and what is to be estimated."""

    a: Side
    b: Side
    causes: tuple[str, ...]
    parameters: dict[str, object]
    role: str = "replay"


@dataclass(frozen=True)
class Least:
    """A count of at least so many."""

    least: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and other >= self.least


def noisy(logits: np.ndarray, size: float | np.ndarray = 0.01, seed: int = 7) -> np.ndarray:
    """Logits with noise of a size, [R, T] or one for all."""
    noise = np.random.default_rng(seed).normal(size=logits.shape)
    return np.asarray(logits + noise * np.broadcast_to(np.asarray(size), SHAPE)[..., None])


def touched(mask: np.ndarray) -> np.ndarray:
    """Sizes of noise [R, T]: twenty times as much where something is at work."""
    return np.where(np.broadcast_to(mask, SHAPE), 0.2, 0.01)


def in_flight(z: np.ndarray, *, kept: bool) -> tuple[Side, Side]:
    """A rollout whose weights change at the step NUM_TOKENS, and a trainer that scores it under the new ones.

    A third of the requests has ended by then, and a third begins. With the KV cache kept, those that run through the
    change attend to older entries, and so does half of the last third, by the prefix cache.
    """
    steps = STEP + (np.arange(NUM_REQUESTS) % 3 * NUM_TOKENS // 2)[:, None]
    version = (steps >= NUM_TOKENS).astype(int)
    begins_before = steps[:, :1] < NUM_TOKENS
    is_stale = (version == 1) & (begins_before | HALF[:, None]) & kept
    a = Side(z, tokens={"step_id": steps, "weight_version": version, "kv_weight_version_min": version - is_stale})
    size = np.where(version == 0, 0.3, np.where(is_stale, 0.15, 0.01))
    return a, Side(noisy(z, size))


def plants() -> dict[str, Callable[[], Planted]]:
    z = made.logits_of(0)
    reported = made.columns(Side(z, 0.7, 0.9), made.sampled(Side(z, 0.7, 0.9)))["logprob"]

    def semantics() -> Planted:
        a = Side(z, 0.7, 0.9, {"reported_logprob": reported})
        return Planted(a, Side(noisy(z), 0.7, 0.9), ("temperature", "truncation"), {"temperature": 0.7}, "trainer")

    def another_temperature() -> Planted:
        return Planted(Side(z), Side(noisy(z), 1.3), ("temperature",), {"temperature": 1.3}, "trainer")

    def scale() -> Planted:
        return Planted(Side(z), Side(noisy(z * 0.9)), ("logit_scale",), {"scale": 0.9})

    def cap() -> Planted:
        return Planted(Side(z), Side(noisy(15 * np.tanh(z / 15), 0.002)), ("soft_cap",), {"cap": 15.0})

    def padded() -> Planted:
        total, padding = made.logsumexp(z), float(np.quantile(made.logsumexp(z), 0.1)) - 2
        offset = np.logaddexp(total, padding) - total
        lower = made.columns(Side(z), made.sampled(Side(z)))
        more = {"logsumexp": total + offset}
        more |= {name: lower[name] - offset for name in ("logprob", "processed_logprob")}
        expected = {"padded_side": "b", "padding_logsumexp": padding}
        return Planted(Side(z), Side(z, tokens=more), ("padded_vocabulary",), expected)

    def head() -> Planted:
        return Planted(Side(made.to_bf16(z)), Side(z), ("head_output_rounding",), {"rounded_side": "a"})

    def operands() -> Planted:
        chance = np.random.default_rng(5)
        hidden = chance.normal(size=(*SHAPE, 16)).astype(np.float32)
        head = chance.normal(size=(16, z.shape[-1]))
        a = Side(hidden @ made.to_bf16(head), hidden=hidden, runs={"head_weight_dtype": "bfloat16"})
        b = Side(hidden @ head, hidden=hidden, runs={"head_weight_dtype": "float32"})
        return Planted(a, b, ("head_operands",), {"b_head_weight_dtype": "float32"})

    def transport() -> Planted:
        tokens = made.sampled(Side(z))
        given = made.to_bf16(made.columns(Side(z), tokens)["processed_logprob"])
        a = Side(z, tokens={"reported_logprob": given})
        return Planted(a, Side(noisy(z, 1e-4)), ("transport_dtype",), {"dtype": "bfloat16", "side": "a"}, "trainer")

    def shifted() -> Planted:
        values = made.columns(Side(z), made.sampled(Side(z)))["processed_logprob"]
        b = Side(z, tokens={"processed_logprob": np.roll(values, 1, axis=1)})
        return Planted(Side(z), b, ("misaligned_rows",), {"shift": 1}, "trainer")

    def cached() -> Planted:
        a = Side(z, requests={"num_cached_tokens": np.where(HALF, 4, 0)})
        return Planted(a, Side(noisy(z, touched(HALF[:, None]))), ("prefix_cache",), {})

    def update() -> Planted:
        a = Side(
            z, tokens={"weight_version": (STEP >= 13).astype(int), "kv_weight_version_min": (STEP >= 13).astype(int)}
        )
        return Planted(a, Side(noisy(z, touched(STEP >= 13))), ("weight_update",), {"versions": [1], "steps": [13]})

    def kept() -> Planted:
        a, b = in_flight(z, kept=True)
        known = {"versions": [0], "agrees_at_versions": [1], "steps": [NUM_TOKENS], "kv": "kept"}
        return Planted(a, b, ("weight_update", "stale_kv"), known, "trainer")

    def cleared() -> Planted:
        a, b = in_flight(z, kept=False)
        known = {"versions": [0], "agrees_at_versions": [1], "steps": [NUM_TOKENS], "kv": "cleared"}
        return Planted(a, b, ("weight_update",), known, "trainer")

    def stale() -> Planted:
        version = (STEP >= 9).astype(int)
        kept = np.where(HALF[:, None], 0, version)
        a = Side(z, tokens={"weight_version": version, "kv_weight_version_min": kept})
        b = Side(
            noisy(z, touched(version > kept)), tokens={"weight_version": version, "kv_weight_version_min": version}
        )
        return Planted(a, b, ("stale_kv",), {})

    def draft() -> Planted:
        a = Side(z, tokens={"draft_index": STEP % 3})
        return Planted(a, Side(noisy(z, touched(STEP % 3 > 0))), ("speculative_decoding",), {})

    def lost_parameters() -> Planted:
        # As if drafts were drawn from all tokens alike, whatever was asked for.
        drafts = STEP % 3 > 0
        asked = Side(z, 0.7)
        values = made.columns(asked, made.sampled(asked))["processed_logprob"]
        uniform = -np.log(z.shape[-1])
        a = Side(
            z,
            0.7,
            tokens={
                "draft_index": np.where(drafts, STEP % 3 - 1, None),
                "processed_logprob": np.where(drafts, uniform, values),
            },
        )
        off = drafts & (np.abs(values - uniform) > 0.5)
        known = {"side": "a", "num_not_finite": 0, "num_in_drafts": Least(int(off.sum()))}
        return Planted(a, Side(noisy(z), 0.7), ("sampler",), known)

    def preempted() -> Planted:
        a = Side(z, requests={"num_preemptions": HALF.astype(int)})
        return Planted(a, Side(noisy(z, touched(HALF[:, None]))), ("preemption",), {})

    def adapter() -> Planted:
        names = np.array(["adapter" if half else None for half in HALF], object)
        a, b = Side(z, requests={"lora": names}), Side(noisy(z, touched(HALF[:, None])), requests={"lora": names})
        return Planted(a, b, ("lora",), {})

    def batch() -> Planted:
        sizes = np.random.default_rng(3).permutation(NUM_TOKENS) + 1
        steps = [{"num_requests": int(size)} for size in sizes]
        large = np.broadcast_to(sizes >= 12, SHAPE)
        return Planted(Side(z, steps=steps), Side(noisy(z, touched(large))), ("batch_dependence",), {"edge": 12})

    def split() -> Planted:
        return Planted(Side(z), Side(noisy(z, touched(POSITION >= 20))), ("attention_split",), {"position": 20})

    def growth() -> Planted:
        return Planted(Side(z), Side(noisy(z, 0.004 * (STEP + 1))), ("context_growth",), {"grows_with": "position"})

    def frozen() -> Planted:
        step = np.broadcast_to((np.arange(NUM_REQUESTS) // 10)[:, None], SHAPE)
        b = Side(noisy(z, 0.02 * (step + 0.5)), tokens={"trainer_step": step})
        return Planted(Side(z), b, ("frozen_engine",), {"grows_with": "b_trainer_step"}, "trainer")

    def other_weights() -> Planted:
        chance = np.random.default_rng(11)
        other = z.copy()
        lost = chance.random(SHAPE) < 0.1
        winner = np.argmax(z, axis=-1)
        np.put_along_axis(other, winner[..., None], np.where(lost, at_most(z), z.max(axis=-1))[..., None], axis=-1)
        return Planted(Side(z), Side(noisy(other)), ("stale_engine",), {})

    def behind() -> Planted:
        planted = other_weights()
        b = Side(planted.b.logits, tokens={"weight_version": np.full(SHAPE, 2)})
        return Planted(planted.a, b, ("stale_engine",), {"versions_behind": 2}, "trainer")

    def penalised() -> Planted:
        seen = np.random.default_rng(2).random(z.shape) < 0.3
        tokens = made.sampled(Side(z))
        lower = made.at(made.raw(z - 0.8 * seen), tokens)
        a = Side(z, tokens={"processed_logprob": lower}, requests={"presence_penalty": np.full(NUM_REQUESTS, 0.8)})
        b = Side(noisy(z), requests={"presence_penalty": np.full(NUM_REQUESTS, 0.8)})
        return Planted(a, b, ("penalties",), {"applied_by": "a"}, "trainer")

    def chunked() -> Planted:
        a = Side(z, steps=cut(HALF, np.full(NUM_REQUESTS, NUM_PROMPT)))
        return Planted(a, Side(noisy(z, touched(HALF[:, None]))), ("chunked_prefill",), {})

    def routed() -> Planted:
        chance = np.random.default_rng(4)
        a_experts = chance.integers(0, 8, SHAPE)
        other = chance.random(SHAPE) < 0.15
        a, b = Side(z, experts=a_experts), Side(noisy(z, touched(other)), experts=(a_experts + other) % 8)
        return Planted(a, b, ("moe_routing",), {})

    def quantised() -> Planted:
        return Planted(Side(z), Side(noisy(z, 0.1), runs={"quantization": "int8"}), ("quantisation",), {"b": "int8"})

    def rounded_parameters() -> Planted:
        # 0.7 in bf16, as the logits are.
        row = made.to_bf16(z)
        lower = made.columns(Side(row, 0.69921875), made.sampled(Side(row, 0.7)))["processed_logprob"]
        a = Side(row, 0.7, tokens={"processed_logprob": lower})
        return Planted(a, Side(row, 0.7), ("parameter_dtype",), {"rounded_side": "a", "dtype": "bfloat16"})

    return {name: plant for name, plant in locals().items() if callable(plant)}


def cut(requests: np.ndarray, num_prompt: np.ndarray) -> list[dict[str, object]]:
    """Steps that read all prompts, those of some requests, bool [R], but for their last four tokens, and then these."""
    names = [f"r{request}" for request in range(NUM_REQUESTS)]
    first = {
        "request_ids": names,
        "scheduled_tokens": (num_prompt - 4 * requests).tolist(),
        "computed_tokens": [0] * len(names),
    }
    late = [name for name, is_cut in zip(names, requests, strict=True) if is_cut]
    done = (num_prompt[requests] - 4).tolist()
    rest = {"request_ids": late, "scheduled_tokens": [4] * len(late), "computed_tokens": done}
    return [{name: [value] for name, value in step.items()} for step in (first, rest)]


def at_most(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.median(z, axis=-1))


PLANTS = plants()


def explained(folder: Path, planted: Planted) -> tuple[Explanation, dict[str, int], np.ndarray]:
    """Explains a pair; returns also how many rows each finding's SQL has in a new session."""
    a, b, d = made.pair(folder, planted.a, planted.b, role=planted.role)
    with connect(a, b) as session:
        explanation = explain(session)
    with connect(a, b) as session:
        counted = {
            finding.cause: len(session.sql(finding.sql).rows())
            for finding in (*explanation.findings, *explanation.within_noise)
        }
    return explanation, counted, d


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_cause_is_named_first(tmp_path: Path, name: str) -> None:
    planted = PLANTS[name]()
    explanation, counted, _ = explained(tmp_path, planted)
    found = [finding.cause for finding in explanation.findings]
    assert set(found[: len(planted.causes)]) == set(planted.causes), (found, explanation.size)
    parameters = {key: value for finding in explanation.findings for key, value in finding.parameters.items()}
    for key, expected in planted.parameters.items():
        approximate = isinstance(expected, float)
        assert parameters[key] == (pytest.approx(expected, rel=0.01) if approximate else expected), key
    for finding in explanation.findings:
        assert finding.num_tokens == counted[finding.cause] > 0
        assert finding.p_value is not None
        assert finding.p_value <= 0.01
    for statistic in ("k2", "k3", "abs"):
        total = sum(finding.shares[statistic] for finding in explanation.findings) + explanation.residual[statistic]
        assert total == pytest.approx(1, abs=1e-9), statistic
    assert sum(explanation.labels.values()) == explanation.num_tokens


def test_a_clean_update_is_told_from_kept_entries(tmp_path: Path) -> None:
    """Shares are those of the squares that NumPy finds; a cache that was cleared leaves nothing to its entries."""
    z = made.logits_of(0)
    for kept in (True, False):
        a, b = in_flight(z, kept=kept)
        explanation, _, d = explained(tmp_path / str(kept), Planted(a, b, (), {}, "trainer"))
        version, oldest = a.tokens["weight_version"], a.tokens["kv_weight_version_min"]
        clean = np.mean(d[(version == 1) & (oldest == 1)] ** 2)
        found = {finding.cause: finding for finding in explanation.findings}
        assert set(found) == ({"weight_update", "stale_kv"} if kept else {"weight_update"})
        groups = {"weight_update": version == 0, "stale_kv": oldest < version}
        for cause, finding in found.items():
            assert finding.num_tokens == groups[cause].sum()
            beyond = np.sum(d[groups[cause]] ** 2 - clean)
            assert finding.shares["k2"] == pytest.approx(beyond / np.sum(d**2), abs=0.02)


def test_kept_entries_without_others_are_not_decided(tmp_path: Path) -> None:
    z = made.logits_of(0)
    version = (STEP >= 9).astype(int)
    a = Side(z, tokens={"weight_version": version, "kv_weight_version_min": np.zeros(SHAPE, int)})
    b = Side(noisy(z, np.where(version == 0, 0.3, 0.1)))
    explanation, _, _ = explained(tmp_path, Planted(a, b, (), {}, "trainer"))
    (finding,) = explanation.findings
    assert (finding.cause, finding.parameters["kv"], finding.parameters["steps"]) == ("weight_update", "kept", [9])
    assert "attended to older KV entries" in explanation.undecided["stale_kv"]


def test_tokens_of_no_finite_difference_are_told_by_their_cause(tmp_path: Path) -> None:
    """NaN, a token that top-p would never have kept, and tokens that a little noise moves over the edge."""
    z = made.logits_of(0)
    a, b = Side(z, 0.7, 0.9), Side(noisy(z, 0.1), 0.7, 0.9)
    tokens = made.sampled(a)
    found = made.columns(a, tokens)
    values, mass = found["processed_logprob"].copy(), found["kept_mass"].copy()
    values[:3, 0], mass[3:5, 0] = np.nan, 0.2
    b_values = made.columns(b, tokens)["processed_logprob"]
    b_values[3:5, 0] = -np.inf
    edge = np.isinf(b_values)
    edge[:5, 0] = False
    assert edge.any()
    explanation, _, _ = explained(
        tmp_path,
        Planted(
            replace(a, tokens={"processed_logprob": values, "kept_mass": mass}),
            replace(b, tokens={"processed_logprob": b_values}),
            (),
            {},
        ),
    )
    assert explanation.excluded == {"edge": int(edge.sum()), "not_a_number": 3, "sampler": 2}
    assert explanation.num_infinite == sum(explanation.excluded.values())


def test_a_setting_that_is_a_document_is_told_in_brief(tmp_path: Path) -> None:
    """Drafts that touch too few tokens to tell: the configuration of drafts stands in the reason, and nothing else."""
    z = made.logits_of(0)
    speculative = {"method": "ngram", "num_speculative_tokens": 3, "draft": {"a": "b" * 500}}
    documents = [json.dumps({"speculative_config": one, "other": "x" * 5000}) for one in (speculative, None)]
    index = np.full(SHAPE, None, object)
    index[:6, 1] = 1
    a = Side(z, tokens={"draft_index": index}, runs={"engine_config": documents[0]})
    b = Side(noisy(z, 0.1), runs={"engine_config": documents[1]})
    explanation, _, _ = explained(tmp_path, Planted(a, b, (), {}))
    reason = explanation.undecided["speculative_decoding"]
    assert "speculative_config is method=ngram, num_speculative_tokens=3 in A, none in B" in reason
    assert len(reason) < 300


@pytest.mark.parametrize("document", ['{"speculative_config": {"meth', "[1]", ""])
def test_a_configuration_that_is_no_document_tells_nothing(tmp_path: Path, document: str) -> None:
    z = made.logits_of(0)
    index = np.full(SHAPE, None, object)
    index[:6, 1] = 1
    a = Side(z, tokens={"draft_index": index}, runs={"engine_config": document})
    b = Side(noisy(z, 0.1), runs={"engine_config": json.dumps({"speculative_config": None})})
    explanation, _, _ = explained(tmp_path, Planted(a, b, (), {}))
    assert "speculative_decoding" not in explanation.undecided


def test_an_engine_behind_all_along_is_not_decided_where_no_token_is_lost(tmp_path: Path) -> None:
    z = made.logits_of(0)
    b = Side(noisy(z), tokens={"weight_version": np.ones(SHAPE, int)})
    explanation, _, _ = explained(tmp_path, Planted(Side(z), b, (), {}, "trainer"))
    assert not explanation.findings
    assert "A's weights are 1 version behind B's at every compared token" in explanation.undecided["weight_update"]


def test_what_candidates_or_logits_would_tell_is_said(tmp_path: Path) -> None:
    """A trainer at a temperature of its own, against a rollout without candidates."""
    z = made.logits_of(0)
    unknown = np.full(SHAPE, None, object)
    columns = ("top_token_ids", "top_logits", "logit_min", "entropy", "top1_margin", "argmax_token_id")
    a = Side(z, 0.7, tokens=dict.fromkeys(columns, unknown))
    explanation, _, _ = explained(tmp_path, Planted(a, Side(z, 0.8), (), {}, "trainer"))
    assert not explanation.findings
    assert "no candidates" in explanation.undecided["temperature"]
    for cause in ("logit_scale", "soft_cap", "padded_vocabulary"):
        assert "raw logits of the tokens are not in B" in explanation.undecided[cause]


def test_facts_of_the_same_requests_are_named_together(tmp_path: Path) -> None:
    z = made.logits_of(0)
    names = np.array(["adapter" if half else None for half in HALF], object)
    a = Side(z, requests={"lora": names, "num_preemptions": HALF.astype(int)})
    b = Side(noisy(z, touched(HALF[:, None])), requests={"lora": names})
    explanation, _, _ = explained(tmp_path, Planted(a, b, (), {}))
    (finding,) = explanation.findings
    assert {finding.cause, *finding.rivals} == {"lora", "preemption"}
    assert finding.verdict == "possible"
    assert "--lora" in finding.next_step
    assert "KV cache" in finding.next_step


def test_facts_that_overlap_share_out_squares(tmp_path: Path) -> None:
    """Each gets what its own noise makes, though each is held against tokens that the other touches."""
    z = made.logits_of(0)
    drafted, preempted = np.broadcast_to(STEP % 3 > 0, SHAPE), np.broadcast_to(HALF[:, None], SHAPE)
    a = Side(z, tokens={"draft_index": STEP % 3}, requests={"num_preemptions": HALF.astype(int)})
    drawn = np.random.default_rng(9).normal(size=(3, *z.shape))
    parts = [
        size * mask[..., None] * one
        for size, mask, one in zip((0.01, 0.2, 0.3), (np.ones(SHAPE), drafted, preempted), drawn, strict=True)
    ]
    explanation, _, d = explained(tmp_path, Planted(a, Side(z + sum(parts)), (), {}))
    tokens = made.sampled(a)
    rows = [made.at(made.raw(z + sum(parts[:num])), tokens) for num in range(4)]
    found = {finding.cause: finding.shares["k2"] for finding in explanation.findings}
    expected = {
        cause: np.sum((rows[num + 1] - rows[num]) * d) / np.sum(d**2)
        for cause, num in (("speculative_decoding", 1), ("preemption", 2))
    }
    assert found == pytest.approx(expected, abs=0.04)


def test_a_fact_of_long_prompts_comes_before_a_change_point(tmp_path: Path) -> None:
    """Where all long prompts but one are cut, like ones that are not are too few to tell; their place is no better."""
    z = made.logits_of(0)
    num_prompt = np.where(HALF, 200, NUM_PROMPT)
    is_cut = HALF & (np.arange(NUM_REQUESTS) > 1)
    a = Side(z, steps=cut(is_cut, num_prompt), num_prompt=num_prompt)
    b = Side(noisy(z, touched(is_cut[:, None])), num_prompt=num_prompt)
    explanation, _, d = explained(tmp_path, Planted(a, b, (), {}))
    (finding,) = explanation.findings
    assert (finding.cause, finding.verdict) == ("chunked_prefill", "possible")
    assert set(finding.rivals) <= {"attention_split", "context_growth"}
    assert finding.rivals
    beyond = np.sum(d[is_cut] ** 2) - is_cut.sum() * NUM_TOKENS * np.mean(d[~is_cut] ** 2)
    assert finding.shares["k2"] == pytest.approx(beyond / np.sum(d**2), abs=0.02)


def test_batches_that_are_never_equal_may_be_behind_a_change_point(tmp_path: Path) -> None:
    z = made.logits_of(0)
    sides = [[{"num_requests": num}] * NUM_TOKENS for num in (8, 2)]
    a, b = Side(z, steps=sides[0]), Side(noisy(z, touched(POSITION >= 20)), steps=sides[1])
    explanation, _, _ = explained(tmp_path, Planted(a, b, (), {}))
    (finding,) = explanation.findings
    assert (finding.cause, finding.verdict, finding.rivals) == ("attention_split", "possible", ("batch_dependence",))
    assert "every compared token" in explanation.undecided["batch_dependence"]
    assert "--vary batch" in finding.next_step


def test_tokens_of_equal_batches_are_held_against_the_others(tmp_path: Path) -> None:
    z = made.logits_of(0)
    sizes = np.random.default_rng(5).integers(1, 9, (2, NUM_TOKENS))
    sides = [[{"num_requests": int(num)} for num in side] for side in sizes]
    is_unequal = sizes[0] != sizes[1]
    a, b = Side(z, steps=sides[0]), Side(noisy(z, touched(is_unequal)), steps=sides[1])
    explanation, counted, _ = explained(tmp_path, Planted(a, b, (), {}))
    (finding,) = explanation.findings
    assert (finding.cause, finding.verdict) == ("batch_dependence", "found")
    assert finding.parameters["batches"] == "not of equal size"
    assert counted["batch_dependence"] == finding.num_tokens == NUM_REQUESTS * np.sum(is_unequal)


def test_each_cause_is_planted() -> None:
    assert {cause for plant in PLANTS.values() for cause in plant().causes} == {cause.name for cause in causes()}


def test_shares_of_exact_causes_are_those_of_numpy(tmp_path: Path) -> None:
    z = made.logits_of(0)
    a = Side(z, 0.7, 0.9)
    tokens = made.sampled(a)
    rows = made.columns(a, tokens)
    a.tokens["reported_logprob"] = rows["logprob"]
    b = Side(noisy(z), 0.7, 0.9)
    explanation, _, _ = explained(tmp_path, Planted(a, b, (), {}, "trainer"))
    d = made.columns(b, tokens)["processed_logprob"].astype(np.float32) - rows["logprob"].astype(np.float32).astype(
        float
    )
    offset = -np.log(rows["kept_mass"])
    deltas = {"truncation": offset, "temperature": rows["processed_logprob"] - offset - rows["logprob"]}
    finite = np.isfinite(d)
    for finding in explanation.findings:
        delta = deltas[finding.cause][finite]
        expected = {
            "k2": np.sum(delta * d[finite]) / np.sum(d[finite] ** 2),
            "k3": np.sum(delta * (np.expm1(d[finite]) - d[finite]) / d[finite])
            / np.sum(np.expm1(d[finite]) - d[finite]),
            "abs": np.sum(delta * np.sign(d[finite])) / np.sum(np.abs(d[finite])),
        }
        assert finding.shares == pytest.approx(expected, rel=1e-5), finding.cause
    assert {finding.cause for finding in explanation.findings} == set(deltas)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [0.0, 1e-6, 0.01])
def test_nothing_is_found_where_nothing_is(tmp_path: Path, seed: int, size: float) -> None:
    z = made.logits_of(seed)
    facts = {"num_cached_tokens": np.where(HALF, 4, 0), "num_preemptions": HALF.astype(int)}
    a = Side(z, 0.8, 0.95, {"draft_index": STEP % 3, "weight_version": (STEP >= 9).astype(int)}, facts)
    explanation, _, _ = explained(tmp_path, Planted(a, Side(noisy(z, size, seed), 0.8, 0.95), (), {}))
    assert [finding.cause for finding in explanation.findings] == []
    assert explanation.residual["k2"] == (pytest.approx(1) if size else 0)


def test_what_repeats_differ_by_at_the_same_tokens_is_no_cause(tmp_path: Path) -> None:
    """Noise that grows with the position: no finding beside repeats; a cause in its midst is one all the same."""
    z = made.logits_of(0)
    size = 0.004 * (STEP + 1)
    preempted = {"num_preemptions": HALF.astype(int)}
    for is_planted in (False, True):
        folder = tmp_path / str(is_planted)
        b = Side(noisy(z, size + 0.2 * is_planted * HALF[:, None]))
        first, second, _ = made.pair(folder, Side(z, requests=preempted), b)
        repeats = [
            made.write(folder / f"repeat-{seed}", Side(noisy(z, size, seed)), made.sampled(Side(z)))
            for seed in (21, 22)
        ]
        with contextlib.ExitStack() as stack:
            session = stack.enter_context(connect(first, second))
            nulls = [stack.enter_context(connect(first, repeat, partial=True)) for repeat in repeats]
            alone, beside = explain(session), explain(session, nulls)
        assert {"attention_split", "context_growth"} & {finding.cause for finding in alone.findings}
        assert [finding.cause for finding in beside.findings] == (["preemption"] if is_planted else [])


def test_the_command(tmp_path: Path) -> None:
    planted = PLANTS["update"]()
    a, b, _ = made.pair(tmp_path, planted.a, planted.b)
    result = CliRunner().invoke(cli, ["explain", str(a), str(b)])
    assert result.exit_code == 0, result.output
    assert "weight_update: in-flight weight update" in result.output
    result = CliRunner().invoke(cli, ["explain", str(a), str(b), "--format", "json"])
    assert json.loads(result.output)["findings"][0]["cause"] == "weight_update"
    result = CliRunner().invoke(cli, ["explain", str(a), str(b), "--format", "md"])
    assert "## weight_update" in result.output
    result = CliRunner().invoke(cli, ["explain", str(a), str(b), "--sql", "weight_update"])
    with connect(a, b) as session:
        assert len(session.sql(result.output).rows()) == NUM_REQUESTS * (NUM_TOKENS - 13)


def test_a_cause_from_outside_is_ranked(tmp_path: Path) -> None:
    """The package in docs/explain.md, made and installed as it says."""
    page = (Path(__file__).parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")
    toml, python, sql = (
        re.search(
            rf"^```{language}\n(.*?)^```$", page[page.index("## A cause of your own") :], re.DOTALL | re.MULTILINE
        )
        for language in ("toml", "python", "sql")
    )
    assert toml and python and sql  # noqa: PT018
    site = tmp_path / "site"
    metadata = site / "tracekit_long_prompts-1.dist-info"
    metadata.mkdir(parents=True)
    (site / "tracekit_long_prompts.py").write_text(python[1])
    (site / "tracekit_long_prompts.sql").write_text(sql[1])
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tracekit-long-prompts\nVersion: 1\n")
    group, line = toml[1].strip().splitlines()
    name = re.fullmatch(r'\[project\.entry-points\."(.+)"\]', group)
    assert name
    (metadata / "entry_points.txt").write_text(f"[{name[1]}]\n{line.replace(chr(34), '')}\n")

    z = made.logits_of(0)
    lengths = np.where(HALF, 8, 5)
    a = Side(z, requests={"num_prompt_tokens": lengths})
    first, second, _ = made.pair(tmp_path, a, Side(noisy(z, touched(HALF[:, None]))))
    command = [sys.executable, "-m", "tracekit.cli.main", "explain", str(first), str(second), "--format", "json"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["findings"][0]
    assert (found["cause"], found["num_tokens"]) == ("long_prompts", int(HALF.sum()) * NUM_TOKENS)


def test_nothing_to_explain(tmp_path: Path) -> None:
    z = made.logits_of(0)
    tokens, nulls = made.sampled(Side(z)), np.full(SHAPE, None, object)
    first = made.write(tmp_path / "a", Side(z), tokens)
    silent = Side(z, tokens={"logprob": nulls, "processed_logprob": nulls})
    second = made.write(tmp_path / "b", silent, tokens, first, "replay")
    result = CliRunner().invoke(cli, ["explain", str(first), str(second)])
    assert isinstance(result.exception, InputError)
    assert "there is nothing to explain" in str(result.exception)


def test_a_cap_is_told_beside_an_update_that_moves_most_tokens_far(tmp_path: Path) -> None:
    """Shares are those of what NumPy adds: the cap's contribution, against all of the difference."""
    z = made.logits_of(0)
    version = (STEP >= 9).astype(int)
    capped = 15 * np.tanh(z / 15)
    a = Side(z, tokens={"weight_version": version, "kv_weight_version_min": version})
    b = Side(noisy(capped, np.where(version == 1, 0.4, 0.002)))
    explanation, _, d = explained(tmp_path, Planted(a, b, (), {}))
    tokens = made.sampled(a)
    added = made.at(made.raw(capped), tokens) - made.at(made.raw(z), tokens)
    found = {finding.cause: finding for finding in explanation.findings}
    assert set(found) == {"soft_cap", "weight_update"}
    assert found["soft_cap"].parameters["cap"] == pytest.approx(15, rel=0.02)
    assert found["soft_cap"].shares["k2"] == pytest.approx(np.sum(added * d) / np.sum(d**2), abs=0.05)


@pytest.mark.parametrize(("width", "first"), [(1.5, "attention_split"), (3.0, "context_growth")])
def test_a_step_and_growth_that_fit_alike_are_named_together(tmp_path: Path, width: float, first: str) -> None:
    """Differences rise over some positions: neither at one nor all along."""
    z = made.logits_of(0)
    sizes = 0.03 + 0.08 / (1 + np.exp(-(STEP - 9) / width))
    explanation, _, _ = explained(tmp_path, Planted(Side(z), Side(noisy(z, sizes)), (), {}))
    (finding,) = explanation.findings
    assert (finding.cause, finding.verdict) == (first, "possible")
    assert {finding.cause, *finding.rivals} == {"attention_split", "context_growth"}
    assert "rope_theta" in finding.next_step
    assert "--attention" in finding.next_step
