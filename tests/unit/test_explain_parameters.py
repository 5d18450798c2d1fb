"""Sampling parameters in 16 bits: what they change of each token, against a sampler in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import explained_pairs as made
from explained_pairs import NUM_PROMPT, NUM_REQUESTS, NUM_TOKENS, Side, to_bf16
from tracekit import connect
from tracekit.analysis.explain import explain

TEMPERATURE, REPETITION, FREQUENCY, PRESENCE = 0.9, 1.1, 0.2, 0.3


def processed(z: np.ndarray, tokens: np.ndarray, rounded: bool) -> np.ndarray:
    """Logprobs [R, T] under penalties and a temperature, as a sampler computes them in bf16 or in full."""
    narrow = to_bf16 if rounded else np.asarray
    temperature, repetition, frequency, presence = (
        narrow(np.array([value]))[0] for value in (TEMPERATURE, REPETITION, FREQUENCY, PRESENCE)
    )
    found = np.empty(tokens.shape)
    for request in range(NUM_REQUESTS):
        prompt = [request, *range(NUM_PROMPT - 1)]
        for index in range(NUM_TOKENS):
            counts = np.bincount(tokens[request, :index], minlength=made.VOCAB_SIZE)
            seen = counts > 0
            in_prompt = np.isin(np.arange(made.VOCAB_SIZE), prompt)
            row = z[request, index]
            scaling = np.where(row > 0, narrow(np.array([1 / repetition]))[0], repetition)
            row = np.where(seen | in_prompt, narrow(row * scaling), row)
            row = narrow(row - narrow(frequency * counts))
            row = narrow(row - presence * seen) / temperature
            found[request, index] = row[tokens[request, index]] - made.logsumexp(row)
    return found


@pytest.mark.parametrize("rounded_side", ["a", "b"])
def test_penalised_logits_in_bf16(tmp_path: Path, rounded_side: str) -> None:
    z = to_bf16(made.logits_of(0))
    tokens = made.sampled(Side(z, TEMPERATURE))
    requests = {
        name: np.full(NUM_REQUESTS, value)
        for name, value in (
            ("repetition_penalty", REPETITION),
            ("frequency_penalty", FREQUENCY),
            ("presence_penalty", PRESENCE),
        )
    }
    values = {rounded: processed(z, tokens, rounded) for rounded in (True, False)}
    sides = {
        side: Side(z, TEMPERATURE, tokens={"processed_logprob": values[side == rounded_side]}, requests=requests)
        for side in "ab"
    }
    a = made.write(tmp_path / "a", sides["a"], tokens)
    b = made.write(tmp_path / "b", sides["b"], tokens, a, "replay")
    with connect(a, b) as session:
        explanation = explain(session)
        finding, *others = explanation.findings
        deltas = np.array(session.sql(f"SELECT delta, d FROM ({finding.sql}) AS q").rows())
    assert finding.cause == "parameter_dtype"
    assert len(deltas) == finding.num_tokens
    assert (finding.parameters["rounded_side"], finding.parameters["dtype"]) == (rounded_side, "bfloat16")
    assert finding.shares["k2"] == pytest.approx(1, abs=0.03)
    change = np.abs(values[True] - values[False])
    assert finding.parameters["mean_change"] == pytest.approx(change.mean(), rel=0.05)
    assert np.corrcoef(deltas.T)[0, 1] > 0.98
    # Twenty candidates tell nearly all of a distribution.
    assert all(abs(other.shares["k2"]) < 0.01 for other in others)


def test_parameters_that_16_bits_hold_are_none_of_it(tmp_path: Path) -> None:
    z = made.logits_of(0)
    noise = np.random.default_rng(5).normal(size=z.shape) * 0.01
    a, b, _ = made.pair(tmp_path, Side(z, 0.75), Side(z + noise, 0.75))
    with connect(a, b) as session:
        assert "parameter_dtype" not in {finding.cause for finding in explain(session).findings}
