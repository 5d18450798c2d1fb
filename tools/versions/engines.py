"""Commands of tracekit, in the interpreters of several releases of vLLM, with the tracekit of this checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# What a team that changes the release keeps of its command line.
ARGUMENTS = ("enforce_eager=true", "max_model_len=1024", "max_num_seqs=32")
_RECORDED = (*ARGUMENTS, 'logprobs_mode="processed_logprobs"')


@dataclass(frozen=True)
class Engine:
    """A release.

    Attributes:
        version: as vLLM tells it.
        python: its interpreter.
    """

    version: str
    python: str


@dataclass
class Workshop:
    """A folder of traces; what is there already is not made again.

    Attributes:
        model: the checkpoint.
        folder: where traces go.
        wide: take bf16 products in float32, see tools/stand_ins/wide_products.py.
        seconds: by command, what it took; of those that ran.
    """

    model: Path
    folder: Path
    wide: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def record(self, engine: Engine, num_requests: int | None, num_tokens: int) -> Path:
        """Returns the rollout, recorded on an engine."""
        out = self.folder / f"{engine.version}.trace"
        rollout = [engine.python, str(Path(__file__).with_name("rollout.py")), str(self.model)]
        rollout += [str(num_requests or 10_000), str(num_tokens), *_RECORDED]
        self.made(out, "record", "-o", str(out), "--strict", "--hidden", "--", *rollout)
        return out

    def on(self, engine: Engine, trace: Path) -> Path:
        """Returns a recording's tokens, forced through another engine, as that one likes to run them."""
        out = self.folder / f"{trace.stem}-on-{engine.version}.trace"
        given = [part for text in ARGUMENTS for part in ("--engine-arg", text)]
        how = ["--backend", "vllm", "--python", engine.python, "--mode", "decode", "--hidden", *given]
        self.made(out, "replay", str(trace), "-o", str(out), "--model", str(self.model), *how)
        return out

    def head(self, trace: Path, dtype: str) -> Path:
        """Returns a trace's hidden states through the head alone, and tracekit's own arithmetic behind it."""
        out = self.folder / f"{trace.stem}-head-{dtype}.trace"
        how = ["--backend", "head", "--head-dtype", dtype]
        self.made(out, "replay", str(trace), "-o", str(out), "--model", str(self.model), *how)
        return out

    def bisect(self, old: Engine, new: Engine, a: Path, b: Path) -> dict[str, Any]:
        """Returns which settings take A to B: the release, the prefix cache; and the way through
        torch's own operations in float32."""
        given = [part for text in ARGUMENTS for part in ("-O", f"engine_arg={text}")]
        vary = f"engine={old.python},{new.python},cache"
        through = "kernels=native,dtype=float32"
        how = ["--backend", "vllm", "--model", str(self.model), "--vary", vary, "--through", through]
        folder = ["--out", str(self.folder / f"{a.stem}.bisect")]
        told = self.run("bisect", str(a), "--against", str(b), *how, *given, *folder, "--basis", "processed", *_JSON)
        return _object(told)

    def smallest(self, engine: Engine, a: Path, exact: Path) -> Path:
        """Returns a folder with the smallest two traces that show how a release's sampler differs from tracekit's."""
        out = self.folder / f"{engine.version}-sampler"
        how = ["--backend", "head", "--model", str(self.model), "--vary", "head", "--basis", "processed"]
        folders = ["--out", str(self.folder / "head.bisect"), "--minimise", str(out)]
        self.made(out, "bisect", str(a), "--against", str(exact), *how, *folders)
        return out

    def explain(self, a: Path, b: Path, null: Path | None = None) -> dict[str, Any]:
        """Returns what `tracekit explain` says."""
        return _object(self.run("explain", str(a), str(b), *(["--null", str(null)] if null else []), *_JSON))

    def rounding(self, engine: Engine) -> dict[str, Any]:
        """Returns how a release's own kernels round to bf16."""
        command = [engine.python, str(Path(__file__).with_name("rounding.py"))]
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=True)
        return _object(done.stdout.splitlines()[-1])

    def made(self, out: Path, *arguments: str) -> None:
        """Runs a command whose result stands at a place, unless a run of it that ended left it there."""
        done = out.with_name(f"{out.name}.done")
        if done.exists():
            return
        self.run(*arguments)
        done.touch()

    def run(self, *arguments: str) -> str:
        """Runs a command of tracekit and returns what it prints.

        Raises:
            RuntimeError: it failed.
        """
        told = " ".join(Path(one).name if "/" in one else one for one in arguments[:4])
        print(f"tracekit {told} …", file=sys.stderr, flush=True)
        begun = time.monotonic()
        command = [sys.executable, "-m", "tracekit.cli.main", *arguments]
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with exit code {done.returncode}: {done.stderr[-4000:]}")
        self.seconds[told] = time.monotonic() - begun
        return done.stdout

    def _environment(self) -> dict[str, str]:
        path = [str(ROOT / "src"), str(self._metadata()), *filter(None, [os.environ.get("PYTHONPATH")])]
        if self.wide:
            path.insert(0, str(ROOT / "tools" / "stand_ins"))
        quiet = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        own = {"PYTHONPATH": os.pathsep.join(path), "TRACEKIT_WIDE_PRODUCTS": str(int(self.wide))}
        return quiet | {"OMP_WAIT_POLICY": "PASSIVE"} | dict(os.environ) | own

    def _metadata(self) -> Path:
        """Returns a folder that tells any interpreter of tracekit's entry points."""
        folder = self.folder / "metadata"
        info = folder / "tracekit-0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0\n")
        groups = (
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
            for group, entries in project["entry-points"].items()
        )
        (info / "entry_points.txt").write_text("\n".join(groups))
        return folder


_JSON = ("--format", "json")


def _object(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found
