"""The views over one trace: what is delivered, and how the rows of several processes become one."""

from __future__ import annotations

from pathlib import Path

from factories import make_request, make_trace
from tracekit import TraceWriter, connect


def test_tokens_end_where_the_client_stopped_receiving(tmp_path: Path) -> None:
    requests = [
        make_request("stopped", token_ids=[1, 2, 3, 4], outcome={"num_output_tokens": 2}),
        make_request("aborted_at_once", token_ids=[5], outcome={"num_output_tokens": 0}),
        make_request("running", token_ids=[6, 7], ended=False),
        make_request("unknown_length", token_ids=[8], outcome={"num_output_tokens": None}),
    ]
    with connect(make_trace(tmp_path / "a", requests=requests)) as session:
        delivered = session.sql("SELECT request_id, token_id FROM tokens ORDER BY token_id").rows()
        everything = session.sql("SELECT token_id FROM tokens_all ORDER BY token_id").rows()
    assert delivered == [("stopped", 1), ("stopped", 2), ("running", 6), ("running", 7), ("unknown_length", 8)]
    assert everything == [(1,), (2,), (3,), (4,), (5,), (6,), (7,), (8,)]


def test_prompt_positions_stand_in_tokens_all_only(tmp_path: Path) -> None:
    prompt_rows = {"output_index": [None, 0], "position": [2, 3], "is_prompt": [True, False]}
    trace = make_trace(tmp_path / "a", requests=[make_request(token_ids=[7, 8], tokens=prompt_rows)])
    with connect(trace) as session:
        assert session.sql("SELECT token_id FROM tokens").rows() == [(8,)]
        assert session.sql("SELECT token_id FROM tokens_all ORDER BY ALL").rows() == [(7,), (8,)]


def test_requests_and_outcomes_are_merged_over_processes(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "a", requests=[make_request("r0", temperature=None, top_p=None, external_id="x")])
    with TraceWriter(trace, run_id="run", writer="w1") as worker:
        columns = {"request_id": "r0", "external_id": "later", "temperature": 0.5, "num_cached_tokens": 16}
        worker.append("requests", {**columns, "stop": [["a", "b"]]})
        worker.append("outcomes", {"request_id": "r0", "num_preemptions": 3, "finish_reason": "abort"})
    with TraceWriter(trace, run_id="other run", writer="w2") as worker:
        worker.append("requests", {"request_id": "r0", "temperature": 0.25})
    merged = "SELECT run_id, external_id, temperature, num_cached_tokens, stop, prompt_token_ids FROM requests"
    with connect(trace) as session:
        requests = session.sql(f"{merged} ORDER BY run_id").rows()
        outcomes = session.sql(
            "SELECT request_id, finish_reason, num_output_tokens, num_preemptions FROM outcomes"
        ).rows()
    assert requests == [("other run", None, 0.25, None, None, None), ("run", "x", 0.5, 16, ["a", "b"], [1, 2, 3])]
    assert outcomes == [("r0", "length", 3, 3)]


def test_journal_rows_and_parts_are_one_table(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "a", requests=[make_request("sealed", token_ids=[1])])
    writer = TraceWriter(trace, run_id="run", writer="w1")
    writer.append("tokens", make_request("journalled", token_ids=[2]).tokens)
    writer.flush()
    with connect(trace) as session:
        rows = session.sql("SELECT request_id, token_id, top_logits FROM tokens ORDER BY token_id").rows()
    writer.close()
    assert rows == [("sealed", 1, [2.0, 1.0]), ("journalled", 2, [2.0, 1.0])]


def test_every_table_has_a_view_with_all_its_columns(tmp_path: Path) -> None:
    from tracekit import schema

    with connect(make_trace(tmp_path / "a")) as session:
        for name in schema.table_names():
            columns = [column.name for column in schema.table(name).columns]
            assert session.sql(f"FROM {name}").columns == columns
        assert session.sql("FROM tokens_all").columns == session.sql("FROM tokens").columns
        assert session.sql("FROM tokens").schema.field("logprob").type == "float"
