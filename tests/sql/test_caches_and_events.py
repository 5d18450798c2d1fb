"""What came from caches, how old KV entries are, and what happened when."""

from __future__ import annotations

import json
from pathlib import Path

from factories import make_request, make_trace
from tracekit import connect


def test_caches(tmp_path: Path) -> None:
    requests = [
        make_request(
            "cached",
            prompt=range(20),
            token_ids=[1, 2],
            num_cached_tokens=16,
            num_external_cached_tokens=4,
            outcome={"num_preemptions": 2},
        ),
        make_request("fresh", token_ids=[1], num_cached_tokens=0, outcome={"num_preemptions": 0}),
        make_request("unknown", token_ids=[1], ended=False),
    ]
    with connect(make_trace(tmp_path / "a", requests=requests)) as session:
        by_request = session.sql("SELECT * EXCLUDE (run_id) FROM request_caches ORDER BY 1").rows()
        by_token = session.sql("SELECT * EXCLUDE (run_id) FROM token_caches ORDER BY 1, 2").rows()
    assert by_request == [
        ("cached", 20, 16, 4, True, 0.8, 2),
        ("fresh", 3, 0, None, False, 0.0, 0),
        ("unknown", 3, None, None, None, None, None),
    ]
    assert by_token == [
        ("cached", 0, 20, True, 16, 4, True),
        ("cached", 1, 21, True, 16, 5, True),
        ("fresh", 0, 3, False, 0, 3, False),
        ("unknown", 0, 3, None, None, None, None),
    ]


def test_kv_lags(tmp_path: Path) -> None:
    versions = {
        "weight_version": [3, 3, 4],
        "kv_weight_version_min": [3, 2, 2],
        "weights_partial": [False, True, False],
    }
    requests = [
        make_request("one", tokens=versions),
        make_request("two", tokens={**versions, "kv_weight_version_min": None}),
    ]
    with connect(make_trace(tmp_path / "a", requests=requests)) as session:
        found = session.sql("SELECT * EXCLUDE (run_id) FROM kv_lags ORDER BY kv_lag").rows()
    assert found == [(0, 1, 1, 3, 3, 0), (1, 1, 1, 3, 3, 1), (2, 1, 1, 4, 4, 0), (None, 3, 1, 3, 4, 1)]


def test_timeline_and_losses(tmp_path: Path) -> None:
    update = {
        "old_version": 1, "version": 2, "label": "step 7", "partial": False, "num_tensors": 3, "names_hash": "ab",
        "num_calls": 1, "checksums": {"head": "h2", "embedding": "e1"},
        "old_checksums": {"head": "h1", "embedding": "e1"},
    }  # fmt: skip
    events = [
        {"kind": "weights_updated", "step_id": 4, "attributes": json.dumps(update)},
        {"kind": "rows_dropped", "attributes": json.dumps({"num_rows": 5, "table": "tokens"})},
        {"kind": "rows_dropped", "attributes": json.dumps({"num_rows": 7, "table": "tokens"})},
        {"kind": "recorder_error", "attributes": json.dumps({"reason": "no"})},
        {"kind": "cache_reset"},
    ]
    columns = (
        "kind, step_id, old_version, version, label, partial, num_tensors, names_hash, num_calls, head_checksum, "
        "embedding_checksum, head_changed, embedding_changed, num_rows, reason"
    )
    with connect(make_trace(tmp_path / "a", events=events)) as session:
        found = session.sql(f"SELECT {columns} FROM timeline WHERE kind <> 'writer_closed'").rows()
        seconds = session.sql("SELECT seconds FROM timeline WHERE kind = 'cache_reset'").rows()
        losses = session.sql("SELECT * EXCLUDE (num_writers_closed) FROM losses").rows()
    nothing = (None,) * 10
    assert found == [
        ("weights_updated", 4, 1, 2, "step 7", False, 3, "ab", 1, "h2", "e1", True, False, None, None),
        ("rows_dropped", None, *nothing, None, 5, None),
        ("rows_dropped", None, *nothing, None, 7, None),
        ("recorder_error", None, *nothing, None, None, "no"),
        ("cache_reset", None, *nothing, None, None, None),
    ]
    assert seconds == [(4e-9,)]
    assert losses == [("run", 1, 12, 1, 0, None)]
