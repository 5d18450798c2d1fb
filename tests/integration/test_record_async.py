"""AsyncLLM in a caller's own program: streams, samples, and requests that are left or aborted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine import run_engine
from tracekit.analysis import connect

pytestmark = pytest.mark.engine


def test_streams_and_aborts(shallow_model: Path, tmp_path: Path) -> None:
    run_engine("async_llm", shallow_model, tmp_path / "outputs.json", record_to=tmp_path / "trace")
    received = json.loads((tmp_path / "outputs.json").read_text())
    query = (
        "SELECT external_id, sample_index, finish_reason, num_output_tokens, "
        "list(token_id ORDER BY output_index) AS ids FROM requests JOIN outcomes USING (run_id, request_id) "
        "JOIN tokens USING (run_id, request_id) GROUP BY ALL"
    )
    with connect(tmp_path / "trace") as session:
        rows = {(row["external_id"], row["sample_index"]): row for row in session.sql(query).arrow().to_pylist()}
        # What the engine had sampled beyond what it delivered is there too, and is told apart.
        ((num_sampled,),) = session.sql("SELECT count(*) FROM tokens_all").rows()
    del rows["warm-up", None]
    assert rows.keys() == {
        *((name, None) for name in ("streamed", "whole", "left", "aborted")),
        *(("samples", index) for index in range(3)),
    }
    for (name, index), row in rows.items():
        tokens = received[name][str(index or 0)]
        assert row["num_output_tokens"] == len(row["ids"])
        if name in ("left", "aborted"):
            assert row["finish_reason"] == "abort"
            assert 4 <= len(tokens) <= len(row["ids"]) < 400
            assert row["ids"][: len(tokens)] == tokens
        else:
            assert (row["finish_reason"], row["ids"]) == ("length", tokens)
    assert num_sampled >= 1 + sum(row["num_output_tokens"] for row in rows.values())
