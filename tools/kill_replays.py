"""Kills a replay again and again at random moments, and holds what it ends with against an undisturbed one.

    python tools/kill_replays.py --model DIR [--kills 20] [--seed N] [--out kills.json]

Each kill is a SIGKILL, and each time the same command is started again. One kill in four comes while the process
starts, so that loading, and going back to the last checkpoint, are interrupted too; the others a random number of
batches and a random time later. Exits with 1 where the trace at the end differs from that of one undisturbed run in
any row of any table, ids of the run and times left out.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from tracekit.schema import table_names
from tracekit.store import Trace, TraceWriter, create_trace

# What no two runs share.
_OF_A_RUN = ("run_id", "started_ns", "process_id", "hostname")
_KEYS = ("request_id", "output_index", "step_id", "time_ns")

# A replay that says how many output tokens are scored, when it begins and after each batch.
_REPLAY = """
import json, sys
from tracekit.replay import driver, replay
from tracekit.store import Trace
parent, out, settings, driver.SAVE_SECONDS = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), float(sys.argv[4])
replay(parent, out, progress=lambda progress: print(progress.num_tokens, flush=True), **settings)
"""


@dataclass(frozen=True)
class Work:
    """What is replayed again and again.

    Attributes:
        parent: the trace.
        settings: arguments of `replay`.
        save_seconds: what a killed replay loses at most.
    """

    parent: Path
    settings: dict[str, Any]
    save_seconds: float


@dataclass
class Kill:
    """One kill.

    Attributes:
        seconds: after the start of the process.
        num_resumed: output tokens that it had gone on with; None where it had not begun.
        num_tokens: rows of `tokens` in the trace that it left, those not kept for good included.
    """

    seconds: float
    num_resumed: int | None
    num_tokens: int


@dataclass
class Series:
    """What a series of kills led to.

    Attributes:
        num_tokens, num_batches: of the whole replay.
        start_seconds, work_seconds: how long the undisturbed one took to begin, and to score.
        kills: each of them.
        num_finished: how many replays came to their end: one, unless one ended before the last kill.
        num_resumed: tokens that the last process, which nobody killed, had gone on with.
        differing: tables in which one of them differs from the undisturbed one.
    """

    num_tokens: int
    num_batches: int
    start_seconds: float
    work_seconds: float
    kills: list[Kill] = field(default_factory=list)
    num_finished: int = 0
    num_resumed: int = 0
    differing: set[str] = field(default_factory=set)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 16))
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()

    print(f"seed {args.seed}")
    with tempfile.TemporaryDirectory(prefix="tracekit-kills-") as folder:
        vocab_size = json.loads((args.model / "config.json").read_text())["vocab_size"]
        parent = make_parent(Path(folder, "parent"), args.requests, vocab_size, random.Random(args.seed))
        settings = {"model": str(args.model), "hidden": True, "batch_tokens": 256}
        series = kill_series(Work(parent, settings, 0.5), Path(folder), args.kills, random.Random(args.seed))
    if args.out:
        args.out.write_text(json.dumps(asdict(series), default=sorted, indent=2) + "\n")
    sys.exit(1 if series.differing else 0)


def make_parent(path: Path, num_requests: int, vocab_size: int, chance: random.Random) -> Path:
    """Writes a trace of requests with random tokens: which ones they are is all the same to a replay."""
    create_trace(path, "record")
    with TraceWriter(path, run_id="run", writer="w") as writer:
        for number in range(num_requests):
            prompt, output = (
                [chance.randrange(vocab_size) for _ in range(chance.randrange(1, most))] for most in (80, 60)
            )
            writer.append(
                "requests",
                {
                    "request_id": f"r{number}",
                    "arrival_ns": number,
                    "num_prompt_tokens": len(prompt),
                    "prompt_token_ids": [prompt],
                    "temperature": chance.choice((0.0, 0.7, 1.0)),
                    "top_p": chance.choice((0.9, 1.0)),
                },
            )
            writer.append(
                "tokens",
                {
                    "request_id": f"r{number}",
                    "output_index": list(range(len(output))),
                    "position": list(range(len(prompt), len(prompt) + len(output))),
                    "token_id": output,
                    "forced": False,
                    "is_prompt": False,
                },
            )
    return path


def kill_series(work: Work, folder: Path, num_kills: int, chance: random.Random) -> Series:
    """Runs the replay undisturbed, then under kills, and compares; tells what it does on standard output.

    Args:
        work: the replay.
        folder: where the traces go.
        num_kills: how many.
        chance: decides the moments.

    Raises:
        RuntimeError: a replay failed.
    """
    whole = folder / "whole"
    series = _undisturbed(work, whole)
    _tell_undisturbed(series)
    while len(series.kills) < num_kills or not series.num_finished:
        out = folder / f"killed-{series.num_finished}"
        while not out.exists() and len(series.kills) < num_kills:
            kill = _kill(work, out, series, num_kills, chance)
            # Where it came too late, the next one is of another replay.
            if not out.exists():
                series.kills.append(kill)
                _tell_kill(len(series.kills), kill)
        if not out.exists():
            process = _start(work, out)
            series.num_resumed = _progress(process)
            _end(process)
        series.num_finished += 1
        series.differing |= differing_tables(whole, out)
    _tell_end(series)
    return series


def _undisturbed(work: Work, out: Path) -> Series:
    started = time.monotonic()
    process = _start(work, out)
    _progress(process)
    begun = time.monotonic()
    num_batches = _end(process)
    return Series(Trace(out).num_rows("tokens"), num_batches, begun - started, time.monotonic() - begun)


def _kill(work: Work, out: Path, series: Series, num_kills: int, chance: random.Random) -> Kill:
    started = time.monotonic()
    process = _start(work, out)
    num_resumed = None
    if len(series.kills) % 4 == 3:
        time.sleep(chance.uniform(0.0, series.start_seconds))
    else:
        num_resumed = _progress(process)
        # Half of the work, all of them together.
        for _ in range(chance.randint(1, max(1, series.num_batches // num_kills))):
            _progress(process)
        time.sleep(chance.uniform(0.0, 2 * series.work_seconds / series.num_batches))
    process.kill()
    seconds = time.monotonic() - started
    if process.wait() not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the replay failed with exit code {process.returncode}")
    return Kill(seconds, num_resumed, _num_tokens_in(out))


def _start(work: Work, out: Path) -> subprocess.Popen[str]:
    arguments = [str(work.parent), str(out), json.dumps(work.settings), str(work.save_seconds)]
    return subprocess.Popen([sys.executable, "-c", _REPLAY, *arguments], stdout=subprocess.PIPE, text=True)


def _progress(process: subprocess.Popen[str]) -> int:
    """Waits until it begins to score, or has scored a batch more; returns how many tokens are scored."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line and process.wait():
        raise RuntimeError(f"the replay failed with exit code {process.returncode}")
    return int(line or 0)


def _end(process: subprocess.Popen[str]) -> int:
    """Waits for the end of it, and returns how many batches were scored since `_progress`."""
    assert process.stdout is not None
    num_batches = len(process.stdout.readlines())
    if process.wait():
        raise RuntimeError(f"the replay failed with exit code {process.returncode}")
    return num_batches


def _num_tokens_in(out: Path) -> int:
    partial = out.with_name(f"{out.name}.partial")
    return Trace(partial).num_rows("tokens") if (partial / "manifest.json").exists() else 0


def differing_tables(a: Path, b: Path) -> set[str]:
    """Returns the tables whose rows are not the same; in which order they were written is all the same."""
    ours, theirs = content(a), content(b)
    return {name for name in table_names() if ours[name] != theirs[name]}


def content(path: Path) -> dict[str, pa.Table]:
    """Returns the rows of all tables, sorted by their keys, without what no two runs share."""
    found = {}
    for name in table_names():
        rows: pa.Table = Trace(path).read(name)
        keys = [key for key in _KEYS if key in rows.column_names]
        rows = rows.drop_columns([column for column in _OF_A_RUN if column in rows.column_names])
        found[name] = rows.sort_by([(key, "ascending") for key in keys]) if keys else rows
    return found


def _tell_undisturbed(series: Series) -> None:
    print(
        f"undisturbed: {series.num_tokens:,} tokens in {series.num_batches} batches, {series.start_seconds:.1f} s to "
        f"begin, {series.work_seconds:.1f} s to score",
        flush=True,
    )


def _tell_kill(number: int, kill: Kill) -> None:
    begun = kill.num_resumed is not None
    done = f"had gone on with {kill.num_resumed:,} tokens" if begun else "had not begun to score"
    print(f"  kill {number:2} after {kill.seconds:5.2f} s: {done}, left {kill.num_tokens:,}", flush=True)


def _tell_end(series: Series) -> None:
    print(f"  the last start, which nobody killed: had gone on with {series.num_resumed:,} tokens")
    if series.num_finished > 1:
        print(f"  {series.num_finished - 1} replays came to their end before a kill")
    verdict = f"DIFFERS in {', '.join(sorted(series.differing))}" if series.differing else "equal, row for row"
    print(f"the trace after {len(series.kills)} kills: {verdict}")


if __name__ == "__main__":
    main()
