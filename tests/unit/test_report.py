"""What reports say, byte for byte."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factories import make_request, make_trace
from tracekit import Session, Trace, TraceWriter, connect
from tracekit.errors import QueryError
from tracekit.report.comparison import Comparison
from tracekit.report.contents import Contents
from tracekit.report.rows import write_rows
from tracekit.report.values import dump_json, to_csv, to_text


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A recording, and a replay that excludes one token and moves one argmax; paths are short and relative."""
    monkeypatch.chdir(tmp_path)
    ids = [10, 11, 12, 13]
    a = [
        make_request("chat-1", token_ids=ids, logprob=-1.0),
        make_request("chat-2", token_ids=[20], temperature=0.0, prompt=[9]),
        make_request("chat-3"),
    ]
    logprob = [-1.25, -1.0, -math.inf, -0.5]
    b = [
        make_request(
            "chat-1", token_ids=ids, logprob=logprob, forced=True, tokens={"argmax_token_id": [10, 7, 12, 13]}
        ),
        make_request("chat-2", token_ids=[20], temperature=0.0, prompt=[9], forced=True),
    ]
    run: dict[str, Any] = {"engine": "transformers", "engine_version": "5.1", "engine_generation": None}
    options = {"backend": "hf", "mode": "prefill", "dtype": "float32", "head_output_dtype": "float32"}
    options["options"] = '{"limit": 2}'
    parent = make_trace(Path("run.trace"), requests=a)
    child = make_trace(Path("fp32.trace"), requests=b, role="replay", parent=parent, run_id="b", run={**run, **options})
    return connect(parent, child)


COMPARISON_TABLE = """\
                     A                B
 ─────────────────────────────────────────────────────
 trace               run.trace        fp32.trace
 role                record           replay
 engine              vllm 0.32.0 v1   transformers 5.1
 model               tiny             tiny
 dtype               bfloat16         float32
 head_output_dtype   bfloat16         float32
 backend             -                hf
 mode                -                prefill

2 requests aligned by request id, 5 pairs; 1 only in A
1 request of A without a row in pairs (not selected), first 'chat-3': B is a replay of a part: --limit 2

 metric                      raw (descriptive)   95% interval      floor   processed   95% interval      floor
 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
 kl                                        inf                                   inf
 k2_kl                                     inf                  2.03e-05         inf                  3.18e-05
 k3_kl                                     inf                  2.03e-05         inf                  3.18e-05
 logprob_abs_diff_mean                     inf                   0.00521         inf                   0.00651
 logprob_abs_diff_max                      inf                    0.0156         inf                    0.0195
 logprob_abs_diff_over_0_1                 0.6    0 to 0.75 ?                   0.75
 delta_p_rms                          0.199455   0 to 0.223 ?
 ppl_ratio                                 inf                                   inf
 effective_sample_size                0.736287   0.679 to 1 ?              0.6790992
 ratio_oob_fraction                        0.6    0 to 0.75 ?                   0.75
 same_top_p                                0.8    0.75 to 1 ?                   0.75
 probs_diff_mean                                                           0.1719763
 probs_diff_max                                                            0.3678794
 chi2_seq                                                                         -1
 sampling_importance_ratio                                                 0.8568805

From 5 tokens raw and 4 processed
?: too few requests, or a figure that its tail carries: the interval covers less than 95%
The floor is a model (one bf16 step of the logits): measure it with --null, a repeat of A
Processed d is -inf at 1 token: B's top-p, top-k or min-p excludes what A drew
First divergence: 0 requests by token, 1 by argmax, 1 never; earliest at output token 1, median 1

 request   output index   kind     token A   token B   margin A   margin B
 ─────────────────────────────────────────────────────────────────────────
 chat-1               1   argmax        11         7          1          1
"""


class TestComparison:
    def test_table(self, pair: Session) -> None:
        assert Comparison.of(pair).to_table().decode() == COMPARISON_TABLE

    def test_json(self, pair: Session) -> None:
        found = json.loads(Comparison.of(pair).to_json(), parse_constant=pytest.fail)
        assert found.keys() == {"num_requests", "num_pairs", "first_divergence", "metrics", "requests", "unaligned"}
        assert (found["num_requests"], found["num_pairs"]) == (2, 5)
        assert found["first_divergence"] == {
            "num_token": 0,
            "num_argmax": 1,
            "num_none": 1,
            "earliest_output_index": 1,
            "median_output_index": 1.0,
        }
        assert found["metrics"].keys() == {"raw", "processed"}
        kl, same = found["metrics"]["raw"]["kl"], found["metrics"]["processed"]["same_top_p"]
        assert (kl["value"], kl["num_tokens"], kl["low"], kl["descriptive"]) == ("inf", 5, None, True)
        assert (same["value"], same["num_tokens"], same["descriptive"]) == (0.75, 4, False)
        assert found["requests"]["first_divergence_rate"]["value"] == 0.5
        (lonely,) = found["unaligned"]
        assert (lonely["side"], lonely["reason"], lonely["request_id"]) == ("A", "not selected", "chat-3")

    def test_metrics_in_a_format(self, pair: Session) -> None:
        sink = io.BytesIO()
        Comparison.of(pair).write_metrics("csv", sink)
        rows = list(csv.DictReader(io.StringIO(sink.getvalue().decode())))
        by_key = {(row["basis"], row["name"]): row for row in rows}
        assert len(by_key) == len(rows)
        assert [by_key["processed", "same_top_p"][name] for name in ("value", "num_tokens", "descriptive")] == [
            "0.75",
            "4",
            "false",
        ]
        assert by_key["raw", "kl"]["value"] == "inf"

    def test_floor_of_repeats(self, tmp_path: Path) -> None:
        """What two repeats differ by is the floor; figures beyond it are not marked."""
        a = make_trace(tmp_path / "a", requests=[make_request(logprob=-1.0)])
        null = make_trace(tmp_path / "null", requests=[make_request(logprob=-1.125)], role="replay", parent=a)
        b = make_trace(tmp_path / "b", requests=[make_request(logprob=[-1.0, -1.0, -1.25])], role="replay", parent=a)
        with connect(a, b) as session, connect(a, null) as repeat:
            found = {(figure.basis, figure.name): figure for figure in Comparison.of(session, [repeat]).figures}
        mean, largest = found["raw", "logprob_abs_diff_mean"], found["raw", "logprob_abs_diff_max"]
        assert (mean.value, mean.floor, mean.floor_source, mean.within_floor) == (0.25 / 3, 0.125, "measured", True)
        assert (largest.value, largest.floor, largest.within_floor) == (0.25, 0.125, False)

    def test_forks_show_the_tokens(self, tmp_path: Path) -> None:
        def trace(name: str, token_id: int, **over: Any) -> Path:
            request = make_request(token_ids=[1, token_id], tokens={"argmax_token_id": 5})
            return make_trace(tmp_path / name, requests=[request], run_id=name, **over)

        a = trace("a", 2)
        with connect(a, trace("b", 3, role="replay", parent=a)) as session:
            text = Comparison.of(session).to_table().decode()
        assert "First divergence: 1 request by token, 0 by argmax, 0 never" in text
        assert text.splitlines()[-1].split() == ["r0", "1", "token", "2", "3", "1", "1"]

    def test_nothing_diverges(self, tmp_path: Path) -> None:
        path = make_trace(tmp_path / "a")
        with connect(path, path) as session:
            assert Comparison.of(session).to_table().decode().endswith("\nNo request diverges (1 compared)\n")


class TestContents:
    @pytest.fixture
    def trace(self, tmp_path: Path) -> Trace:
        events = [
            {"kind": "rows_dropped", "attributes": '{"num_rows": 7}'},
            {"kind": "rows_dropped", "attributes": '{"num_rows": 5}'},
            {"kind": "rows_dropped", "attributes": "damaged"},
            {"kind": "weights_updated", "attributes": '{"num_rows": 100}'},
        ]
        run = {"engine_config": '{"seed": 3}', "capture_config": "not json", "prefix_caching": True}
        return Trace(make_trace(tmp_path / "a", events=events, run=run))

    def test_json(self, trace: Trace) -> None:
        found = json.loads(Contents.of(trace).to_json())
        assert list(found) == ["manifest", "runs", "tables", "bytes_per_token", "rows_dropped"]
        assert found["manifest"]["trace_id"] == trace.manifest.trace_id
        assert found["runs"][0]["engine_config"] == {"seed": 3}
        assert found["runs"][0]["capture_config"] == "not json"
        size = (trace.path / "tokens" / "w0-000000.parquet").stat().st_size
        assert found["tables"]["tokens"] == {"rows": 3, "bytes": size}
        assert found["tables"]["routes"] == {"rows": 0, "bytes": 0}
        assert found["bytes_per_token"] == size / 3
        assert found["rows_dropped"] == 12

    def test_table_shows_losses_first(self, trace: Trace) -> None:
        lines = Contents.of(trace).to_table().decode().splitlines()
        assert lines[0] == "INCOMPLETE: 12 rows dropped while recording"
        pairs = [line.strip().split(maxsplit=1) for line in reversed(lines[1:]) if len(line.split()) > 1]
        cells = {pair[0]: pair[1] for pair in pairs}
        assert cells["engine"] == "vllm 0.32.0 v1"
        assert cells["prefix_caching"] == "True"
        assert cells["time"] == "2023-11-14 22:13:20 to 2023-11-14 22:13:25 UTC (5.0 s)"
        assert cells["runs"] == "1 (1 writer)"
        assert any(line.split()[:2] == ["tokens", "3"] for line in lines)

    def test_failures_come_before_the_configuration(self, tmp_path: Path) -> None:
        events = [
            {"kind": "recorder_error", "attributes": '{"where": "a hook", "error": "first"}'},
            {"kind": "recorder_error", "attributes": '{"where": "another", "error": "second"}'},
            {"kind": "recorder_disabled", "attributes": '{"reason": "no room\\u001b[2J"}'},
            {"kind": "recorder_disabled", "attributes": "damaged"},
        ]
        lines = Contents.of(Trace(make_trace(tmp_path / "a", events=events))).to_table().decode().splitlines()
        assert lines[:3] == [
            "RECORDER DISABLED: no room\\x1b[2J",
            "RECORDER DISABLED: -",
            "2 failures of the recorder, the first in a hook: first",
        ]

    def test_a_recorder_that_was_disabled(self, tmp_path: Path) -> None:
        trace = Trace(make_trace(tmp_path / "a", requests=[], run={"disabled_reason": "no space\x1b[2J\nleft"}))
        contents = Contents.of(trace)
        line = "NOT RECORDED by writer w0: no space\\x1b[2J\\nleft"
        assert contents.to_table().decode().splitlines()[0] == line
        assert json.loads(contents.to_json())["bytes_per_token"] is None

    def test_rows_in_journals_are_told(self, tmp_path: Path) -> None:
        path = make_trace(tmp_path / "a")
        with TraceWriter(path, run_id="run", writer="w1") as writer:
            writer.append("tokens", make_request("r1").tokens)
            writer.flush()
            contents = Contents.of(Trace(path))
        assert contents.tables["tokens"].rows == 6
        assert "3 rows in journals" in contents.to_table().decode().splitlines()[-1]

    def test_an_empty_trace(self, tmp_path: Path) -> None:
        from tracekit import create_trace

        create_trace(tmp_path / "a", "record")
        contents = Contents.of(Trace(tmp_path / "a"))
        assert contents.span_ns is None
        assert contents.to_table()


QUERY = """
    SELECT 1::INTEGER AS i, 0.1::FLOAT AS f, 1 / 3 AS d, 'a,"b"' AS s, [1.5, NULL] AS l, {'x': true} AS o, NULL AS n,
    'nan'::DOUBLE AS nan, sum(5::BIGINT) AS h, false AS b
"""


class TestRows:
    @pytest.fixture
    def session(self, tmp_path: Path) -> Session:
        return connect(make_trace(tmp_path / "a"))

    def written(self, session: Session, query: str, output_format: str, **options: Any) -> bytes:
        sink = io.BytesIO()
        write_rows(session.sql(query), output_format, sink, **options)
        return sink.getvalue()

    def test_table(self, session: Session) -> None:
        assert self.written(session, QUERY, "table").decode() == (
            " i     f           d   s       l          o           n   nan   h   b\n"
            " ────────────────────────────────────────────────────────────────────────\n"
            ' 1   0.1   0.3333333   a,"b"   [1.5, -]   {x: true}   -   nan   5   false\n'
        )

    def test_json(self, session: Session) -> None:
        assert self.written(session, QUERY, "json").decode() == (
            '[\n  {"i": 1, "f": 0.10000000149011612, "d": 0.3333333333333333, "s": "a,\\"b\\"", "l": [1.5, null], '
            '"o": {"x": true}, "n": null, "nan": "nan", "h": 5, "b": false}\n]\n'
        )

    def test_csv(self, session: Session) -> None:
        assert self.written(session, QUERY, "csv").decode() == (
            "i,f,d,s,l,o,n,nan,h,b\n"
            '1,0.10000000149011612,0.3333333333333333,"a,""b""","[1.5, null]","{""x"": true}",,nan,5,false\n'
        )

    def test_parquet(self, session: Session) -> None:
        rows = pq.read_table(io.BytesIO(self.written(session, "SELECT token_id, top_logits FROM tokens", "parquet")))
        assert rows.schema.field("top_logits").type == pa.list_(pa.float32())
        assert rows.column("token_id").to_pylist() == [10, 11, 12]

    @pytest.mark.parametrize(
        ("output_format", "expected"), [("table", " x\n ─\n".encode()), ("json", b"[]\n"), ("csv", b"x\n")]
    )
    def test_no_rows(self, session: Session, output_format: str, expected: bytes) -> None:
        assert self.written(session, "SELECT 1 AS x WHERE false", output_format) == expected

    def test_a_table_may_be_cut_short(self, session: Session) -> None:
        sink = io.BytesIO()
        assert write_rows(session.sql("FROM range(10)"), "table", sink, max_rows=4) == 6
        assert len(sink.getvalue().splitlines()) == 6

    @pytest.mark.parametrize("output_format", ["json", "parquet"])
    def test_columns_of_one_name(self, session: Session, output_format: str) -> None:
        result = session.sql("SELECT * FROM (SELECT 1 AS x) AS a, (SELECT 2 AS x) AS b")
        if result.columns == ["x", "x"]:
            with pytest.raises(QueryError, match="two columns are called 'x'"):
                write_rows(result, output_format, io.BytesIO())
        else:
            assert len(set(result.columns)) == 2


@pytest.mark.parametrize(
    ("value", "as_json", "as_csv", "as_text"),
    [
        (math.inf, '"inf"', "inf", "inf"),
        (-math.inf, '"-inf"', "-inf", "-inf"),
        (math.nan, '"nan"', "nan", "nan"),
        (True, "true", "true", "true"),
        (None, "null", None, "-"),
        (Decimal(2**70), str(2**70), 2**70, str(2**70)),
        (Decimal("0.5"), "0.5", 0.5, "0.5"),
        (b"\x00\xff", '"AP8="', "AP8=", "AP8="),
        (date(2026, 1, 2), '"2026-01-02"', "2026-01-02", "2026-01-02"),
        ("é\n\x1b[1m", '"é\\n\\u001b[1m"', "é\n\x1b[1m", "é\\n\\x1b[1m"),
        ([1, math.nan], '[1, "nan"]', '[1, "nan"]', "[1, nan]"),
        (123456.789, "123456.789", 123456.789, "123456.8"),
    ],
)
def test_values(value: Any, as_json: str, as_csv: Any, as_text: str) -> None:
    assert (dump_json(value), to_csv(value), to_text(value)) == (as_json, as_csv, as_text)
