"""The traces that come with the package, and what the demo says of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow.compute as pc
import pytest

from tracekit import Trace, connect, demo
from tracekit.cli.main import main

# Where a folder of the machine that made them would begin; /tmp/tracekit-demo is where everybody makes them.
PLACES = ("/root", "/home", "/usr", "/opt", "/mnt", str(Path(__file__).parents[2]))


def test_they_are_real_and_whole() -> None:
    rollout, fp32 = Trace(demo.ROLLOUT), Trace(demo.FP32)
    assert (rollout.manifest.role, fp32.manifest.role) == ("record", "replay")
    assert fp32.manifest.parent == rollout.manifest.trace_id
    assert rollout.num_rows("tokens") == fp32.num_rows("tokens") == 754
    assert set(rollout.read("runs").column("engine").to_pylist()) == {"vllm"}
    assert set(rollout.read("runs").column("device").to_pylist()) >= {"cpu"}
    assert not pc.any(pc.equal(rollout.read("events").column("kind"), "rows_dropped")).as_py()


def test_they_show_what_sampling_does() -> None:
    requests = Trace(demo.ROLLOUT).read("requests").to_pylist()
    assert {row["temperature"] for row in requests if row["temperature"] is not None} == {0.0, 0.6, 0.8, 1.0}
    assert sum((row["num_cached_tokens"] or 0) > 0 for row in requests) == 5
    logits = Trace(demo.ROLLOUT).read("tokens", ["logit"]).column(0).to_pylist()
    # A bf16 number has 8 bits: its mantissa is a whole number of 2^-8, between 1/2 and 1.
    assert all((math.frexp(value)[0] * 256).is_integer() for value in logits)
    others = Trace(demo.FP32).read("tokens", ["logit"]).column(0).to_pylist()
    assert not any((math.frexp(value)[0] * 256).is_integer() for value in others)


def test_every_token_has_its_text() -> None:
    with connect(demo.ROLLOUT, demo.FP32, tokenizer=demo.VOCABULARY) as session:
        query = "SELECT count_if(token_text(id) IS NULL), count(*) FROM "
        query += "(SELECT unnest(a_top_token_ids || b_top_token_ids || [token_id]) AS id FROM pairs)"
        assert session.sql(query).rows() == [(0, 754 * 41)]


@pytest.mark.parametrize("path", [demo.ROLLOUT, demo.FP32])
def test_they_name_no_folder_of_a_machine(path: Path) -> None:
    trace = Trace(path)
    text = json.dumps([trace.read(name).to_pylist() for name in ("runs", "requests", "events", "outcomes")])
    assert [place for place in PLACES if f"{place}/" in text] == []


def test_the_demo(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["demo"]) == 0
    captured = capfdbinary.readouterr()
    text = captured.out.decode()
    assert captured.err == b""
    for query in demo.queries():
        assert query.rstrip() in text
    assert len(demo.queries()) == 3
    lines = [line.split() for line in text.splitlines()]
    # Worked out from the tables in plain Python: all of A's logits between 16 and 32 are multiples of 1/8, none of B's.
    for words, path in ((["rollout,", "bf16"], demo.ROLLOUT), (["replay,", "fp32"], demo.FP32)):
        tokens = Trace(path).read("tokens", ["logit", "top1_margin"]).to_pylist()
        within = [row for row in tokens if 16 <= abs(row["logit"]) <= 32]
        counts = [
            len(within),
            sum((row["logit"] * 8).is_integer() for row in within),
            sum(row["top1_margin"] == 0 for row in within),
        ]
        assert [*words, *map(str, counts)] in lines
    assert f"tracekit shell {demo.ROLLOUT} {demo.FP32} --tokenizer {demo.VOCABULARY}" in text
