"""Settings in an engine's own configuration, with a stand-in for vLLM that makes configurations and starts workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tracekit.store import Trace, create_trace

_FAKE = {
    "__init__.py": "__version__ = '9.9.9'\n",
    "config.py": """
import hashlib, json
class ParallelConfig:
    def __init__(self, rank):
        self._api_process_rank = rank
class VllmConfig:
    def __init__(self, instance_id, additional_config, rank):
        self.instance_id, self.additional_config = instance_id, additional_config
        self.parallel_config = ParallelConfig(rank)
    def compute_hash(self, factor=""):
        return hashlib.md5((factor + json.dumps(self.additional_config, sort_keys=True)).encode()).hexdigest()
""",
    "engine/__init__.py": "",
    "engine/arg_utils.py": """
from vllm.config import VllmConfig
class EngineArgs:
    def __init__(self, instance_id="i1", additional_config=None, rank=0):
        self.arguments = instance_id, {} if additional_config is None else additional_config, rank
    def create_engine_config(self, usage_context=None):
        return VllmConfig(*self.arguments)
""",
    "v1/__init__.py": "",
    "v1/worker/__init__.py": "",
    "v1/worker/worker_base.py": """
class WorkerBase:
    def __init__(self, vllm_config, rank=0):
        self.vllm_config = vllm_config
""",
}

_BEGIN = """
import json, os, pickle, sys
from tracekit.record.plugin import register
register()
import vllm.engine.arg_utils, vllm.v1.worker.worker_base
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.worker.worker_base import WorkerBase

def settled(instance):
    from tracekit.record.registry import config_of
    config = config_of(instance)
    return None if config is None else {"trace": config.trace, "session": config.session, "top_k": config.top_k}

found = {}
"""
_END = "\nprint(json.dumps(found))\n"


class Finished:
    def __init__(self, result: subprocess.CompletedProcess[str]) -> None:
        assert result.returncode == 0, result.stderr
        self.found: Any = json.loads(result.stdout)
        self.errors = result.stderr


@pytest.fixture
def process(tmp_path: Path) -> Any:
    """Runs a program in a folder of its own, with a vLLM beside it that is a stand-in."""
    for name, content in _FAKE.items():
        file = tmp_path / "site" / "vllm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    here = tmp_path / "here"
    here.mkdir()

    def run(program: str, **env: str) -> Finished:
        path = os.pathsep.join([str(tmp_path / "site"), *sys.path])
        clean = {name: value for name, value in os.environ.items() if "TRACEKIT_RECORD" not in name}
        command = [sys.executable, "-c", _BEGIN + program + _END]
        return Finished(
            subprocess.run(command, cwd=here, env=clean | {"PYTHONPATH": path} | env, capture_output=True, text=True)
        )

    run.folder = here  # type: ignore[attr-defined]
    return run


def test_without_settings_nothing_is_imported(process: Any) -> None:
    program = """
config = EngineArgs(additional_config={"other": 1}).create_engine_config()
WorkerBase(config)
config.compute_hash()
found = sorted(name for name in sys.modules if name.startswith("tracekit.") or name in ("torch", "pyarrow"))
"""
    assert process(program).found == [
        "tracekit.record",
        "tracekit.record.engines",
        "tracekit.record.engines.own_settings",
        "tracekit.record.engines.patching",
        "tracekit.record.plugin",
        "tracekit.version",
    ]


def test_all_processes_of_an_engine_agree(process: Any) -> None:
    first = process("""
settings = {"other": 1, "tracekit": {"trace": "run.trace", "top_k": 4}}
config = EngineArgs(additional_config=settings).create_engine_config()
found = {"here": settled("i1"), "other": config.additional_config["other"], "hash": config.compute_hash("f")}
found["plain"] = EngineArgs(additional_config={"other": 1}).create_engine_config().compute_hash("f")
found["unrelated"] = settled("another engine")
pickle.dump(config, open("config.pickle", "wb"))
""")
    here = first.found["here"]
    assert here["trace"] == str(process.folder / "run.trace")
    assert here["top_k"] == 4
    assert first.found["unrelated"] is None
    assert first.found["other"] == 1
    assert first.found["hash"] == first.found["plain"], "what is compiled does not depend on where it is recorded"
    # The process that made the configuration completed the trace, and said that it stayed empty.
    assert Trace(process.folder / "run.trace").num_rows("runs") == 0
    assert first.errors.count("no engine step was recorded") == 1
    assert "no engine was started" in first.errors

    worker = process('config = pickle.load(open("config.pickle", "rb"))\nWorkerBase(config, 1)\nfound = settled("i1")')
    assert worker.found == here
    assert worker.errors == ""


BAD = [
    (
        {"trace": "t", "topk": 4},
        "additional_config['tracekit']: no such recorder setting 'topk' (did you mean 'top_k'?)",
    ),
    ({"trace": "t", "top_k": "4"}, "'top_k' is '4', but a whole number was expected"),
    ({"trace": "t", "where": "x > 1"}, "a request has no 'x'"),
    ({"top_k": 4}, "additional_config['tracekit'] names no trace"),
    ("run.trace", "an object of recorder settings was expected"),
    ({"trace": "taken"}, "taken exists already"),
    ({"trace": "replayed", "append": True}, "is a trace of role 'replay', but only recordings are appended to"),
]


def test_bad_settings_leave_the_engine_alone(process: Any) -> None:
    create_trace(process.folder / "taken", "record")
    create_trace(process.folder / "replayed", "replay")
    finished = process(f"""
for index, settings in enumerate({[settings for settings, _ in BAD]!r}):
    config = EngineArgs(f"i{{index}}", {{"other": 1, "tracekit": settings}}).create_engine_config()
    WorkerBase(config)
    found[index] = [config.additional_config, settled(f"i{{index}}")]
""")
    assert list(finished.found.values()) == [[{"other": 1}, None]] * len(BAD)
    for line, (_, message) in zip(finished.errors.splitlines(), BAD, strict=True):
        assert line.startswith("tracekit: recorder disabled, the engine goes on: ")
        assert message in line
    assert sorted(path.name for path in process.folder.iterdir()) == ["replayed", "taken"]


def test_strict_settings_stop_the_engine(process: Any) -> None:
    program = (
        'EngineArgs(additional_config={"tracekit": {"trace": "t", "strict": True, "x": 1}}).create_engine_config()'
    )
    with pytest.raises(AssertionError, match="no such recorder setting 'x'"):
        process(program)


def test_the_environment_is_stronger_and_leaves_the_rest(process: Any) -> None:
    program = """
config = EngineArgs(additional_config={"tracekit": {"trace": "own", "top_k": 4, "first": 2}}).create_engine_config()
found = config.additional_config["tracekit"]
"""
    only_top_k = process(program, TRACEKIT_RECORD_TOP_K="9").found
    assert only_top_k.items() >= {"trace": str(process.folder / "own"), "top_k": 9, "first": 2}.items()
    whole = process(program, TRACEKIT_RECORD="outer", TRACEKIT_RECORD_SHARE="0.5").found
    expected = {"trace": str(process.folder / "outer"), "share": 0.5, "top_k": 4, "first": 2}
    assert whole.items() >= expected.items()
    # In charge of the recording is who named its session: this process then neither makes nor completes the trace.
    given = {"TRACEKIT_RECORD": str(process.folder / "given"), "TRACEKIT_RECORD_SESSION": "s1"}
    assert process(program, **given).found["session"] == "s1"
    assert sorted(path.name for path in process.folder.iterdir()) == ["outer", "own"]


def test_the_environment_alone(process: Any) -> None:
    program = """
config = EngineArgs().create_engine_config()
found = [settled("i1"), settled("i2"), os.environ["TRACEKIT_RECORD"], os.environ["TRACEKIT_RECORD_SESSION"]]
found.append(config.additional_config)
"""
    (process.folder / "record.toml").write_text('trace = "run.trace"\ntop_k = 3\n')
    finished = process(program, TRACEKIT_RECORD_CONFIG="record.toml")
    one, two, trace, session, additional = finished.found
    assert one == two == {"trace": str(process.folder / "run.trace"), "session": session, "top_k": 3}
    assert trace == one["trace"]
    assert additional == {}
    assert Trace(trace).num_rows("runs") == 0
    assert "no engine was started" in finished.errors
    # A second time the place is taken, and the engine starts all the same; its children are not told to record.
    again = process(
        "EngineArgs().create_engine_config()\nfound = os.environ.get('TRACEKIT_RECORD')", TRACEKIT_RECORD=trace
    )
    assert again.found is None
    assert again.errors.count("exists already") == 1
    appended = process(program, TRACEKIT_RECORD=trace, TRACEKIT_RECORD_APPEND="1").found
    assert appended[3] != session


def test_a_recording_without_any_engine_says_so(process: Any) -> None:
    finished = process("", TRACEKIT_RECORD="run.trace")
    assert "nothing was recorded in" in finished.errors
    assert list(process.folder.iterdir()) == []


def test_api_servers_record_into_the_run_of_the_engine_they_serve(process: Any) -> None:
    """`vllm serve` with several API servers: each makes a configuration, with an instance id of its own."""
    program = """
import subprocess
settings = {"tracekit": {"trace": "run.trace"}} if sys.argv[1:] != ["env"] else None
server = '''
import json, os, sys
from tracekit.record.plugin import register
register()
from vllm.engine.arg_utils import EngineArgs
from tracekit.record.engines.describe import instance_of
from tracekit.record.registry import config_of
config = EngineArgs("of-server", json.loads(sys.argv[1]), 0).create_engine_config()
print(json.dumps([instance_of(config), config_of(instance_of(config)).session]))
'''
engine = EngineArgs("of-engine", settings, -1).create_engine_config()
command = [sys.executable, "-c", server, json.dumps({"tracekit": {"trace": "run.trace"}} if settings else None)]
found = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(2)]
found.append(settled("of-engine")["session"])
"""
    first, second, session = process(program).found
    assert first == second == ["of-engine", session]
    from_env = process(program.replace("sys.argv[1:] != ['env']", "False"), TRACEKIT_RECORD="env.trace").found
    assert from_env[0] == from_env[1] == ["of-engine", from_env[2]]
    assert sorted(path.name for path in process.folder.iterdir()) == ["env.trace", "run.trace"]
