"""Runs a program of integration/engine_runs/ in a process of its own, on one of the engines that tracekit records."""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
_RUNS = Path(__file__).parent / "integration" / "engine_runs"


@dataclass(frozen=True)
class Engine:
    """An engine generation, and how a process comes by it.

    Attributes:
        name: release and model runner.
        variable: the environment variable that names its interpreter; None for the one that runs the tests.
        environment: what selects its model runner.
    """

    version: str
    generation: str
    variable: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.version}-{self.generation}"

    @property
    def python(self) -> str:
        """Its interpreter.

        Raises:
            AssertionError: the environment does not tell.
        """
        if self.variable is None:
            return sys.executable
        python = os.environ.get(self.variable, "")
        assert Path(python).is_file(), (
            f"{self.variable} is '{python}', which is not a file; it must name the interpreter of an environment with "
            f"vLLM {self.version} (`make test` does it, `make engines` makes the environment)"
        )
        return python

    def variables(self) -> dict[str, str]:
        """The environment variables of a process on this engine, beside those that are set already."""
        path = [self.environment["PYTHONPATH"]] if "PYTHONPATH" in self.environment else []
        if self.variable is not None:
            path += [str(ROOT / "src"), _metadata()]
        path += [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        return self.environment | ({"PYTHONPATH": os.pathsep.join(path)} if path else {})


V0 = Engine("0.8.5", "v0", "TRACEKIT_TEST_VLLM_0_8_5")
V1_OLD = Engine("0.18.1", "v1", "TRACEKIT_TEST_VLLM_0_18_1")
V1 = Engine("0.32.0", "v1")
V2 = Engine(
    "0.32.0",
    "v2",
    environment={
        "TRITON_INTERPRET": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "PYTHONPATH": str(ROOT / "tools" / "stand_ins"),
    },
)


def run_engine(
    name: str,
    *args: str | Path,
    engine: Engine = V1,
    record_to: Path | None = None,
    env: dict[str, str] | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Runs engine_runs/NAME.py, under `tracekit record` where `record_to` is given; shows its output on failure."""
    command = [engine.python, str(_RUNS / f"{name}.py"), *map(str, args)]
    if record_to is not None:
        record = [sys.executable, "-m", "tracekit.cli.main", "record", "-o", str(record_to), "--strict", "--"]
        command = record + command
    quiet = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment = quiet | dict(os.environ) | engine.variables() | (env or {})
    result = subprocess.run(command, env=environment, capture_output=True, text=True, start_new_session=True)
    if check and result.returncode != 0:
        raise AssertionError(
            f"{name} on vLLM {engine.name} ended with {result.returncode}\n{result.stdout}\n{result.stderr[-6000:]}"
        )
    return result


@functools.cache
def _metadata() -> str:
    """Returns a folder that tells an interpreter of tracekit's entry points; its code comes from this checkout."""
    folder = tempfile.TemporaryDirectory(prefix="tracekit-metadata-")
    atexit.register(folder.cleanup)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = Path(folder.name) / "tracekit-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0\n")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups))
    return folder.name
