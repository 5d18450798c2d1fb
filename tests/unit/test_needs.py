"""vLLM releases that are not as the adapters expect: stand-ins for vLLM that lack this and that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tracekit.record.engines.needs import missing_of
from tracekit.store import Trace, create_trace

_RUNNER = """
class GPUModelRunner:
    def __init__(self, vllm_config, device=None):
        self.vllm_config = vllm_config
    def execute_model(self, scheduler_output): ...
    def sample_tokens(self, grammar_output): ...
    def _sample(self, logits, spec_decode_metadata): ...
    def _get_prompt_logprobs_dict(self, hidden_states, num_scheduled_tokens): ...
    def _determine_batch_execution_and_padding(self): ...
    def shutdown(self): ...
"""
_PROCESSOR = """
class OutputProcessor:
    def add_request(self, request, prompt, parent_req=None, request_index=0, queue=None): ...
    def abort_requests(self, request_ids, internal): ...
class RequestState:
    def make_request_output(self, new_token_ids, pooling_output, finish_reason, stop_reason): ...
"""
_FAKE = {
    "__init__.py": "__version__ = '9.9.9'\n",
    "v1/__init__.py": "",
    "v1/engine/__init__.py": "",
    "v1/engine/output_processor.py": _PROCESSOR,
    "v1/engine/llm_engine.py": """
import vllm.v1.engine.output_processor
class LLMEngine:
    def __init__(self, vllm_config):
        self.vllm_config, self.output_processor = vllm_config, vllm.v1.engine.output_processor.OutputProcessor()
    def add_request(self, request_id): ...
""",
    "v1/worker/__init__.py": "",
    "v1/worker/worker_base.py": "class WorkerBase:\n    def __init__(self, vllm_config, rank=0): ...\n",
    "v1/worker/gpu_model_runner.py": _RUNNER,
    "v1/worker/gpu/__init__.py": "",
    "v1/worker/gpu/model_runner.py": "class GPUModelRunner: ...\n",
}

_PROGRAM = """
import json, sys
from types import SimpleNamespace
import vllm
from tracekit.record.plugin import register
register()
vllm_config = SimpleNamespace(instance_id="i", additional_config=None, parallel_config=SimpleNamespace(rank=0))
from vllm.v1.worker.worker_base import WorkerBase
worker = WorkerBase(vllm_config)
{engine}
from tracekit.record.registry import active_config, deactivate
print(json.dumps(active_config() is not None))
# As at its end, where a busy machine's writer would not be waited for as long.
deactivate(timeout=60)
"""
_V1 = "from vllm.v1.worker.gpu_model_runner import GPUModelRunner\nGPUModelRunner(vllm_config)"
_FRONT_END = "from vllm.v1.engine.llm_engine import LLMEngine\nLLMEngine(vllm_config)"


class Started:
    """What became of an engine that was started with a vLLM of these files."""

    def __init__(self, folder: Path, engine: str, files: dict[str, str | None], strict: bool = False) -> None:
        for name, content in (_FAKE | files).items():
            if content is not None:
                file = folder / "site" / "vllm" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content)
        env = {name: value for name, value in os.environ.items() if "TRACEKIT_RECORD" not in name}
        env |= {
            "PYTHONPATH": os.pathsep.join([str(folder / "site"), *sys.path]),
            "TRACEKIT_RECORD": str(folder / "trace"),
            "TRACEKIT_RECORD_SESSION": "s",
            "TRACEKIT_RECORD_STRICT": str(strict),
        }
        create_trace(folder / "trace", "record")
        command = [sys.executable, "-c", _PROGRAM.format(engine=engine)]
        self.result = subprocess.run(command, env=env, capture_output=True, text=True)
        # That weight updates are not seen in these files is said too, and keeps nothing else from being recorded.
        said = self.result.stderr.splitlines()
        self.complaints = [line for line in said if "not all that should be is recorded" not in line]
        self.runs = Trace(folder / "trace").read("runs").to_pylist()
        self.events = Trace(folder / "trace").read("events").to_pylist()

    @property
    def records(self) -> Any:
        assert self.result.returncode == 0, self.result.stderr
        return json.loads(self.result.stdout)


def _is_off(started: Started, process: str, reason: str) -> None:
    assert started.records is False
    assert started.complaints == [f"tracekit: recorder disabled, the engine goes on: {reason}"]
    (row,) = started.runs
    assert (row["run_id"], row["process"], row["disabled_reason"]) == ("s-i", process, reason)
    assert (row["engine"], row["engine_version"]) == ("vllm", "9.9.9")
    assert [event["kind"] for event in started.events] == ["recorder_disabled", "writer_closed"]
    assert json.loads(started.events[0]["attributes"]) == {"reason": reason}


def test_a_release_with_all_of_it_is_recorded(tmp_path: Path) -> None:
    # Model Runner V2 of this release lacks nearly everything, and is not used.
    engine = f"{_V1}\nimport vllm.v1.worker.gpu.model_runner"
    started = Started(tmp_path, engine, {})
    assert started.records is True
    assert started.complaints == []


def test_a_method_that_is_gone(tmp_path: Path) -> None:
    runner = _RUNNER.replace("def _sample(", "def _sample_anew(")
    started = Started(tmp_path, _V1, {"v1/worker/gpu_model_runner.py": runner})
    reason = (
        "vLLM 9.9.9 has no vllm.v1.worker.gpu_model_runner: type object 'GPUModelRunner' has no attribute '_sample'"
    )
    _is_off(started, "worker", reason)


def test_parameters_that_changed(tmp_path: Path) -> None:
    processor = _PROCESSOR.replace("request, prompt, parent_req=None", "request, parent_req=None, prompt=None")
    started = Started(tmp_path, _FRONT_END, {"v1/engine/output_processor.py": processor})
    reason = (
        "vLLM 9.9.9 has no vllm.v1.engine.output_processor.OutputProcessor.add_request(request, prompt, parent_req, "
        "request_index) (its parameters are: request, parent_req, prompt, request_index, queue)"
    )
    _is_off(started, "front_end", reason)


def test_a_class_that_is_gone(tmp_path: Path) -> None:
    runner = _RUNNER.replace("class GPUModelRunner", "class ModelRunner")
    engine = "from vllm.v1.worker.gpu_model_runner import ModelRunner\nModelRunner(vllm_config)"
    started = Started(tmp_path, engine, {"v1/worker/gpu_model_runner.py": runner})
    _is_off(started, "worker", "vLLM 9.9.9 has no vllm.v1.worker.gpu_model_runner.GPUModelRunner")


def test_modules_that_are_gone(tmp_path: Path) -> None:
    gone: dict[str, str | None] = {"v1/worker/gpu_model_runner.py": None, "v1/worker/gpu/model_runner.py": None}
    started = Started(tmp_path, "", gone)
    assert started.records is False
    (complaint,) = started.complaints
    assert "vLLM 9.9.9 has no vllm.v1.worker.gpu_model_runner and no vllm.v1.worker.gpu.model_runner" in complaint
    assert started.runs[0]["disabled_reason"] in complaint


def test_strict_settings_stop_the_engine(tmp_path: Path) -> None:
    runner = _RUNNER.replace("def _sample(", "def _sample_anew(")
    started = Started(tmp_path, _V1, {"v1/worker/gpu_model_runner.py": runner}, strict=True)
    assert started.result.returncode == 1
    assert "RecorderError: recorder disabled: vLLM 9.9.9 has no" in started.complaints[-1]


class TestMissing:
    @pytest.fixture
    def module(self) -> ModuleType:
        module = ModuleType("some.module")

        class Thing:
            def method(self, a: int, b: int = 0, *, c: int = 0) -> None: ...

        module.Thing = Thing  # type: ignore[attr-defined]
        module.function = lambda x: x  # type: ignore[attr-defined]
        return module

    @pytest.mark.parametrize(
        "need", ["Thing", "Thing.method", "Thing.method(a)", "Thing.method(a, b, c)", "function(x)"]
    )
    def test_what_is_there(self, module: ModuleType, need: str) -> None:
        assert missing_of(module, [need]) == []

    @pytest.mark.parametrize(
        ("need", "fault"),
        [
            ("Other", "some.module.Other"),
            ("Thing.other(a)", "some.module.Thing.other"),
            ("Thing.method(b)", "some.module.Thing.method(b) (its parameters are: a, b, c)"),
            ("function(x, y)", "some.module.function(x, y) (its parameters are: x)"),
        ],
    )
    def test_what_is_not(self, module: ModuleType, need: str, fault: str) -> None:
        assert missing_of(module, ["Thing", need]) == [fault]
