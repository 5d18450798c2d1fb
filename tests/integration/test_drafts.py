"""A fault of an engine: on CPUs vLLM 0.32.0 draws the tokens of drafts with temperatures of uninitialised memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tracekit
from commands import command, explained
from engine import run_engine

pytestmark = pytest.mark.engine

_TOKENS = """
    SELECT
        request_id, output_index, a_draft_index IS NOT NULL, a_logprob, b_logprob, a_processed_logprob,
        b_processed_logprob
    FROM pairs
    ORDER BY ALL
"""


def test_a_sampler_that_loses_the_parameters_of_drafts(model_path: Path, tmp_path: Path) -> None:
    """The same hidden states through a sound sampler: raw logprobs agree, processed ones of drafts do not."""
    rollout, exact = tmp_path / "rollout", tmp_path / "exact"
    run_engine("drafts", model_path, rollout)
    command("replay", rollout, "-o", exact, "--backend", "head", "--model", model_path, "--head-dtype", "bfloat16")
    with tracekit.connect(rollout, exact) as session:
        rows = session.sql(_TOKENS).rows()
    names = [(request, index) for request, index, *_ in rows]
    in_draft, a_raw, b_raw, a, b = np.array([row[2:] for row in rows], np.float64).T
    assert np.max(np.abs(a_raw - b_raw)) < 1e-3
    off = ~(np.abs(b - a) < 0.5)
    assert off.any(), "the engine kept to the parameters of all drafts"
    assert np.all(in_draft[off] == 1)

    document = explained(rollout, exact)
    first = document["findings"][0]
    assert (first["cause"], first["verdict"], first["parameters"]["side"]) == ("sampler", "found", "a")
    with tracekit.connect(rollout, exact) as session:
        told = {(row["request_id"], row["output_index"]) for row in session.sql(first["sql"]).dicts()}
    assert {name for name, is_off in zip(names, off, strict=True) if is_off} <= told
    assert first["parameters"]["num_in_drafts"] == first["num_tokens"] == len(told)
    assert first["shares"]["k2"] > 0.98
    assert document["excluded"] == ({"not_a_number": int(np.isnan(a).sum())} if np.isnan(a).any() else {})
