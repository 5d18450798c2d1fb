"""What differs between the configurations of two traces."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from factories import MadeRequest, make_request, make_trace
from tracekit import TraceWriter, connect
from tracekit.analysis.explain.settings import SettingDifference, setting_differences
from tracekit.demo import FP32, ROLLOUT

Runs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Found:
    cause: str
    settings: tuple[str, ...]
    shares: Mapping[str, float] = field(default_factory=lambda: {"k2": 0.003})


def differences(
    folder: Path,
    a: Runs,
    b: Runs,
    requests: tuple[MadeRequest, MadeRequest] | None = None,
    findings: Sequence[Found] = (),
) -> list[SettingDifference]:
    """Of two traces of one run each, whose processes say this."""
    pair = requests or (make_request(), make_request())
    first = make_trace(folder / "a", run=a[0], requests=[pair[0]])
    second = make_trace(folder / "b", run=b[0], requests=[pair[1]], role="replay", parent=first)
    for path, processes in ((first, a), (second, b)):
        for index, process in enumerate(processes[1:]):
            with_writer = {"writer": f"more{index}", "role": "record", "process": "worker"}
            writer = TraceWriter(path, run_id="run", writer=f"more{index}")
            writer.append("runs", {**with_writer, **process})
            writer.close()
    with connect(first, second) as session:
        return list(setting_differences(session, findings))


def told(found: Sequence[SettingDifference]) -> list[tuple[str, str | None, str | None]]:
    """What is left without what a replay and a recording always differ in."""
    return [(each.setting, each.a_value, each.b_value) for each in found if each.setting != "mode"]


def test_equal_configurations(tmp_path: Path) -> None:
    same = {"prefix_caching": True, "process_id": 1, "hostname": "one", "options": json.dumps({"mode": "decode"})}
    assert told(differences(tmp_path, [same], [{**same, "process_id": 2, "hostname": "other"}])) == []


def test_they_stand_in_the_order_of_what_matters(tmp_path: Path) -> None:
    a = {"torch_version": "2.8", "logprobs_mode": "raw_logprobs", "prefix_caching": False, "seed": 1}
    b = {
        "torch_version": "2.9",
        "logprobs_mode": "processed_logprobs",
        "prefix_caching": True,
        "dtype": "float32",
        "seed": 2,
    }
    found = differences(tmp_path, [a], [b])
    assert told(found) == [
        ("logprobs_mode", "raw_logprobs", "processed_logprobs"),
        ("dtype", "bfloat16", "float32"),
        ("prefix_caching", "false", "true"),
        ("torch_version", "2.8", "2.9"),
        ("seed", "1", "2"),
    ]
    assert all(each.known and each.reason and each.num_requests == 1 and each.source == "runs" for each in found[:-1])


def test_what_one_side_does_not_tell_comes_last(tmp_path: Path) -> None:
    found = differences(tmp_path, [{"prefix_caching": True, "seed": 1}], [{"seed": 2}])
    assert told(found) == [("seed", "1", "2"), ("prefix_caching", "true", None)]
    assert {each.setting: each.known for each in found if each.setting != "mode"} == {
        "seed": True,
        "prefix_caching": False,
    }


def test_where_nothing_is_quantised_that_is_known(tmp_path: Path) -> None:
    assert told(differences(tmp_path, [{"quantization": "fp8"}], [{}])) == [("quantization", "fp8", "none")]


def test_a_cache_of_the_bodys_dtype(tmp_path: Path) -> None:
    found = differences(tmp_path, [{"kv_cache_dtype": "auto"}], [{"kv_cache_dtype": "bfloat16"}])
    assert told(found) == []
    found = differences(tmp_path / "other", [{"kv_cache_dtype": "auto"}], [{"kv_cache_dtype": "fp8"}])
    assert told(found) == [("kv_cache_dtype", "bfloat16", "fp8")]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()


def test_names_count_only_where_files_may_differ(tmp_path: Path) -> None:
    a, b = {"model": "hub/model", "tokenizer": "hub/model"}, {"model": "/here/model", "tokenizer": "/here/model"}
    assert told(differences(tmp_path, [a], [b])) == [
        ("model", "hub/model", "/here/model"),
        ("tokenizer", "hub/model", "/here/model"),
    ]
    known = {"model_fingerprint": "f", "tokenizer_hash": "t"}
    assert told(differences(tmp_path / "other", [a | known], [b | known])) == []


def test_processes_of_one_run(tmp_path: Path) -> None:
    """The front end computes nothing; workers that disagree are told side by side."""
    front = {"process": "front_end", "num_threads": 8, "max_num_seqs": 64}
    workers = [{"num_threads": 1, "tp_rank": 0}, {"num_threads": 2, "tp_rank": 1}]
    found = differences(tmp_path, [front, *workers], [{"num_threads": 1, "max_num_seqs": 32}])
    assert told(found) == [("max_num_seqs", "64", "32"), ("num_threads", "1, 2", "1")]


def test_runs_are_compared_as_their_requests_are_paired(tmp_path: Path) -> None:
    """Two runs of A with one setting each, of which B changed the second's; a third run is in no pair."""

    def add(path: Path, run_id: str, request_id: str, on: bool, role: str) -> None:
        writer = TraceWriter(path, run_id=run_id, writer=run_id)
        writer.append("runs", {"writer": run_id, "role": role, "prefix_caching": on, "dtype": "bfloat16"})
        one = make_request(request_id, prompt=[len(request_id), ord(request_id[0])])
        writer.append("requests", one.request)
        writer.append("outcomes", one.outcome or {})
        writer.append("tokens", one.tokens)
        writer.close()

    runs = {"engine": None, "engine_version": None, "engine_generation": None, "model": None, "head_output_dtype": None}
    a = make_trace(tmp_path / "a", run={"prefix_caching": False, **runs}, requests=[make_request("r0")])
    b = make_trace(
        tmp_path / "b", run={"prefix_caching": False, **runs}, requests=[make_request("r0")], role="replay", parent=a
    )
    add(a, "second", "s", True, "record")
    add(b, "second", "s", True, "replay")
    with connect(a, b) as session:
        assert told(setting_differences(session)) == []
    add(a, "third", "tt", True, "record")
    add(b, "third", "tt", False, "replay")
    with connect(a, b) as session:
        found = [each for each in setting_differences(session) if each.setting != "mode"]
    assert told(found) == [("prefix_caching", "true", "false")]
    assert found[0].num_requests == 1


def config(**more: Any) -> dict[str, Any]:
    document = {
        "instance_id": "1",
        "scheduler_config": {"policy": "fcfs", "async_scheduling": True, "scheduler_cls": "<class 'S' at 0x7f01>"},
        "compilation_config": {"cudagraph_mode": "NONE", "cudagraph_capture_sizes": [1, 2, 4], "cache_dir": "/one"},
        "parallel_config": {"master_port": 1000, "rank": 0, "all2all_backend": "naive"},
        "model_config": {
            "hf_config": {"rope_parameters": {"rope_theta": 1e4}},
            "hf_text_config": {"rope_parameters": {"rope_theta": 1e4}},
        },
        "cache_config": {"block_size": 16, "sliding_window": None},
    }
    for section, values in more.items():
        document[section] = {**document[section], **values}
    return {"engine_config": json.dumps(document)}


def test_the_engines_configuration_key_by_key(tmp_path: Path) -> None:
    a = config()
    b = config(
        compilation_config={
            "cudagraph_mode": "FULL",
            "cudagraph_capture_sizes": [1, 2, 8],
            "cache_dir": "/other",
            "level": 3,
        },
        parallel_config={"master_port": 2000, "rank": 1, "all2all_backend": "pplx"},
        model_config={
            "hf_config": {"rope_parameters": {"rope_theta": 1e6}},
            "hf_text_config": {"rope_parameters": {"rope_theta": 1e6}},
        },
        cache_config={"block_size": 16, "sliding_window": 4096},
        scheduler_config={"policy": "priority", "async_scheduling": False, "scheduler_cls": "<class 'S' at 0x7f02>"},
    )
    found = differences(tmp_path, [a], [b])
    assert told(found) == [
        ("model_config.hf_config.rope_parameters.rope_theta", "10000.0", "1000000.0"),
        ("parallel_config.all2all_backend", "naive", "pplx"),
        ("compilation_config.cudagraph_mode", "NONE", "FULL"),
        ("compilation_config.cudagraph_capture_sizes", "[1,2,4]", "[1,2,8]"),
        ("compilation_config.level", "none", "3"),
        ("cache_config.sliding_window", "none", "4096"),
        ("scheduler_config.policy", "fcfs", "priority"),
    ]
    assert {each.source for each in found if each.setting != "mode"} == {"engine_config"}


def test_a_key_that_another_release_lacks_is_not_known(tmp_path: Path) -> None:
    a = {"engine_version": "0.8.5", **config()}
    b = config(compilation_config={"level": 3}, model_config={"hf_overrides": {"head_dtype": "float32"}})
    assert told(differences(tmp_path, [a], [b])) == [
        ("model_config.hf_overrides.head_dtype", "none", "float32"),
        ("engine_version", "0.8.5", "0.32.0"),
        ("compilation_config.level", None, "3"),
    ]


def test_another_engine_has_no_such_configuration(tmp_path: Path) -> None:
    assert told(differences(tmp_path, [config()], [{"options": json.dumps({"autocast": None, "kv": "keep"})}])) == []


def test_options_of_a_replay(tmp_path: Path) -> None:
    one_sided = differences(
        tmp_path, [{}], [{"options": json.dumps({"autocast": "bfloat16", "parent_run_id": "x", "limit": 3})}]
    )
    assert told(one_sided) == [("options.autocast", None, "bfloat16")]
    a, b = ({"options": json.dumps({"autocast": None, "parent_run_id": p, "extra": p})} for p in ("x", "y"))
    assert told(differences(tmp_path / "other", [a], [b])) == [("options.extra", "x", "y")]


def test_documents_that_are_none(tmp_path: Path) -> None:
    assert told(differences(tmp_path, [{"engine_config": "not JSON"}], [config()])) == []


def test_sampling_parameters(tmp_path: Path) -> None:
    a = make_request(temperature=0.7, top_k=-1, seed=3, logit_bias=None, frequency_penalty=0.0)
    b = make_request(temperature=1.0, top_k=0, seed=None, logit_bias='{"1": 2.0}', lora="adapter")
    found = differences(tmp_path, [{}], [{}], (a, b))
    assert told(found) == [
        ("lora", "none", "adapter"),
        ("temperature", "0.7", "1.0"),
        ("logit_bias", "none", '{"1": 2.0}'),
        ("seed", "3", "none"),
        ("frequency_penalty", "0.0", None),
    ]
    assert {each.source for each in found if each.setting != "mode"} == {"requests"}


def test_many_values_are_cut(tmp_path: Path) -> None:
    requests = [[make_request(f"r{i}", prompt=[i], seed=seed + i) for i in range(6)] for seed in (0, 10)]
    a = make_trace(tmp_path / "a", requests=requests[0])
    b = make_trace(tmp_path / "b", requests=requests[1], role="replay", parent=a)
    with connect(a, b) as session:
        found = [each for each in setting_differences(session) if each.setting == "seed"]
    assert told(found) == [("seed", "0, 1, 2, 3, …", "10, 11, 12, 13, …")]
    assert found[0].num_requests == 6


def test_causes_stand_beside_what_they_are_about(tmp_path: Path) -> None:
    findings = [
        Found("prefix_cache", ("prefix_caching",)),
        Found("graphs", ("compilation_config", "prefix_caching"), {"k2": 0.5}),
        Found("other", ("compilation",)),
    ]
    a, b = {"prefix_caching": False, **config()}, {"prefix_caching": True, **config(compilation_config={"level": 2})}
    found = differences(tmp_path, [a], [b], findings=findings)
    assert {each.setting: tuple(one.cause for one in each.causes) for each in found if each.setting != "mode"} == {
        "prefix_caching": ("prefix_cache", "graphs"),
        "compilation_config.level": ("graphs",),
    }
    assert [one.shares for each in found for one in each.causes] == [{"k2": 0.003}, {"k2": 0.5}, {"k2": 0.5}]


def test_the_demo_pair() -> None:
    """A recording of vLLM, and its replay by transformers in fp32."""
    with connect(ROLLOUT, FP32) as session:
        found = setting_differences(session)
    known = {each.setting: (each.a_value, each.b_value) for each in found if each.known}
    assert known == {
        "head_output_dtype": ("bfloat16", "float32"),
        "dtype": ("bfloat16", "float32"),
        "head_operand_dtype": ("bfloat16", "float32"),
        "head_weight_dtype": ("bfloat16", "float32"),
        "engine": ("vllm", "transformers"),
        "attention_backend": ("CPU_ATTN", "sdpa"),
        "mode": ("decode", "prefill"),
        "prefix_caching": ("true", "false"),
        "chunked_prefill": ("true", "false"),
        "engine_version": ("0.32.0", "5.19.0"),
        "num_threads": ("1", "2"),
        "max_model_len": ("2048", "8192"),
    }
    assert next(iter(known)) == "head_output_dtype"
    unknown = {each.setting for each in found if not each.known}
    assert {"logprobs_mode", "max_num_seqs", "async_scheduling"} <= unknown
    assert not unknown & {"model", "tokenizer", "backend", "process_id", "hostname", "started_ns"}
    assert [each.known for each in found] == sorted((each.known for each in found), reverse=True)
    assert {each.num_requests for each in found} == {20}


def test_a_part_that_one_side_has_not_is_one_row(tmp_path: Path) -> None:
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "zone": 1, "draft": {"a": 1, "b": {"c": 2}}, "off": False}
    sides = ({"speculative_config": drafts, "other": 1}, {"speculative_config": None, "other": 1})
    a, b = ({"engine_config": json.dumps(side)} for side in sides)
    found = differences(tmp_path, [a], [b])
    assert told(found) == [("speculative_config", "method=ngram, num_speculative_tokens=3, zone=1", "none")]
    assert found[0].reason
    assert told(differences(tmp_path / "turned", [b], [a]))[0][1:] == ("none", told(found)[0][1])
