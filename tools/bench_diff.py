"""What `tracekit diff` costs beside the bare join of the same traces, `tracekit explain` beside `diff`, what compacting
them gains, and how they grow.

    python tools/bench_diff.py [--tokens 10000000] [--with-lists 1000000] [--parts 1000] [--large 100000000]
                               [--memory-limit 4GB] [--threads N] [--rounds 3] [--cache DIR] [--out FILE]

Traces are made up (tools/made_trace.py) and kept in the cache. Every figure is of a process of its own, its start
included; the bare join is one DuckDB query over the Parquet files: both traces on their key, one average. What is
compared is run in turns, round by round; quote the median of the ratios, not the seconds of a busy machine.

1. --tokens: `diff` beside the bare join; goal: 3 times. --with-lists: so many tokens with 20 candidates each. `explain`
   of --tokens; goals: 60 s and 4 GB (3.7 GiB) on two cores, for 10 million.
2. --parts: the traces of --tokens in so many parts each, compacted; `diff` before and after; goal: 1.5 times as fast.
3. --large: so many tokens, compacted, under --memory-limit, beside --tokens compacted; goal: 12 times for 10 times
   as many.
Each is left out where its number is 0.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from made_trace import Made, make_pair
from measured import run_measured

_BARE = """
import sys, duckdb
a, b, limit, threads, temp = sys.argv[1:]
config = {"temp_directory": temp, "memory_limit": limit, "threads": threads}
config = {name: value for name, value in config.items() if value}
query = '''
    SELECT avg(b.logprob - a.logprob) FROM read_parquet($a) AS a JOIN read_parquet($b) AS b
    ON a.request_id = b.request_id AND a.output_index = b.output_index
'''
files = {"a": f"{a}/tokens/*.parquet", "b": f"{b}/tokens/*.parquet"}
print(duckdb.connect(config=config).execute(query, files).fetchone()[0])
"""


@dataclass(frozen=True)
class Run:
    """One process: its wall time, its processor time, its largest resident memory."""

    seconds: float
    cpu_seconds: float
    peak_gib: float


@dataclass(frozen=True)
class Limited:
    """Options that all processes get."""

    memory_limit: str | None
    threads: int | None
    temp_dir: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--with-lists", type=int, default=1_000_000)
    parser.add_argument("--parts", type=int, default=1000)
    parser.add_argument("--large", type=int, default=0)
    parser.add_argument("--memory-limit", default="4GB", help="of the large traces, and those beside them")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "tracekit" / "bench")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tracekit-bench-", dir=args.cache) as temp:
        free, limited = Limited(None, args.threads, temp), Limited(args.memory_limit, args.threads, temp)
        if args.tokens:
            figures["diff"] = beside_bare(args.cache, Made(args.tokens), free, args.rounds)
            figures["explain"] = explained(args.cache, Made(args.tokens), free, args.rounds)
        if args.with_lists:
            figures["diff_with_lists"] = beside_bare(args.cache, Made(args.with_lists, 20), free, args.rounds)
        if args.parts:
            made = Made(args.tokens, num_parts=args.parts)
            figures["compact"] = before_and_after(args.cache, made, free, args.rounds, Path(temp))
        if args.large:
            figures["large"] = growth(args.cache, args.tokens, args.large, limited, args.rounds, Path(temp))
    print(f"load of the machine in the last 15 minutes: {os.getloadavg()[2]:.1f}, processors: {os.cpu_count()}")
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2, default=asdict) + "\n")


def beside_bare(cache: Path, made: Made, limited: Limited, num_rounds: int) -> dict[str, list[Run]]:
    """Times `diff` and the bare join of one pair of traces in turns."""
    a, b = make_pair(cache, made)
    runs = _in_turns({"bare": _bare(a, b, limited), "diff": _diff(a, b, limited)}, num_rounds)
    lists = f", {made.num_candidates} candidates each" if made.num_candidates else ""
    print(f"{made.num_tokens:,} tokens{lists}: diff {_told(runs['diff'])}, bare join {_told(runs['bare'])}")
    print(f"  diff takes {_ratio(runs, 'diff', 'bare')} times as long as the bare join")
    return runs


def explained(cache: Path, made: Made, limited: Limited, num_rounds: int) -> dict[str, list[Run]]:
    """Times `explain` and `diff` of one pair of traces in turns."""
    a, b = make_pair(cache, made)
    commands = {name: _command(name, a, b, limited) for name in ("diff", "explain")}
    runs = _in_turns(commands, num_rounds)
    print(f"{made.num_tokens:,} tokens: explain {_told(runs['explain'])}, diff {_told(runs['diff'])}")
    print(f"  explain takes {_ratio(runs, 'explain', 'diff')} times as long as diff")
    return runs


def before_and_after(cache: Path, made: Made, limited: Limited, num_rounds: int, temp: Path) -> dict[str, list[Run]]:
    """Times compaction of one pair of traces, and `diff` of the traces as they were and as they are then, in turns."""
    a, b = make_pair(cache, made)
    compacted = _compacted((a, b), temp / "compacted")
    before, after = _diff(a, b, limited), _diff(compacted.paths[0], compacted.paths[1], limited)
    runs = _in_turns({"before": before, "after": after}, num_rounds)
    print(f"{made.num_tokens:,} tokens in {made.num_parts:,} parts: compact {_told(compacted.runs)} each")
    print(f"  {_sizes((a, b), compacted.paths)}")
    print(f"  diff before {_told(runs['before'])}, after {_told(runs['after'])}")
    print(f"  diff after it is {_ratio(runs, 'before', 'after')} times as fast")
    shutil.rmtree(temp / "compacted")
    return {**runs, "compact": compacted.runs}


def growth(cache: Path, small: int, large: int, limited: Limited, num_rounds: int, temp: Path) -> dict[str, list[Run]]:
    """Times `diff` of two pairs of compacted traces in turns, under one memory limit."""
    commands, compactions = {}, {}
    for name, num_tokens in (("small", small), ("large", large)):
        compacted = _compacted(make_pair(cache, Made(num_tokens)), temp / name)
        compactions[f"compact_{name}"] = compacted.runs
        print(f"{num_tokens:,} tokens: compact {_told(compacted.runs)}")
        commands[name] = _diff(compacted.paths[0], compacted.paths[1], limited)
    runs = _in_turns(commands, num_rounds)
    print(f"under {limited.memory_limit}: diff of {small:,} tokens {_told(runs['small'])}")
    print(f"  of {large:,} tokens {_told(runs['large'])}")
    print(f"  {large / small:g} times the tokens take {_ratio(runs, 'large', 'small')} times as long")
    return {**runs, **compactions}


@dataclass(frozen=True)
class _Compacted:
    paths: tuple[Path, Path]
    runs: list[Run]


def _compacted(traces: tuple[Path, Path], folder: Path) -> _Compacted:
    """Compacts copies of traces that share their files with them: parts never change, so they stay as they are."""
    copies = tuple(Path(shutil.copytree(trace, folder / trace.name, copy_function=os.link)) for trace in traces)
    runs = [_run([sys.executable, "-m", "tracekit.cli.main", "compact", str(copy)]) for copy in copies]
    return _Compacted((copies[0], copies[1]), runs)


def _bare(a: Path, b: Path, limited: Limited) -> list[str]:
    limits = [limited.memory_limit or "", str(limited.threads or ""), limited.temp_dir]
    return [sys.executable, "-c", _BARE, str(a), str(b), *limits]


def _diff(a: Path, b: Path, limited: Limited) -> list[str]:
    return _command("diff", a, b, limited)


def _command(name: str, a: Path, b: Path, limited: Limited) -> list[str]:
    limits = ["--temp-dir", limited.temp_dir]
    limits += ["--memory-limit", limited.memory_limit] if limited.memory_limit else []
    limits += ["--threads", str(limited.threads)] if limited.threads else []
    return [sys.executable, "-m", "tracekit.cli.main", name, str(a), str(b), "--format", "json", *limits]


def _in_turns(commands: dict[str, list[str]], num_rounds: int) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(num_rounds):
        for name in list(commands)[:: -1 if number % 2 else 1]:
            runs[name].append(_run(commands[name]))
    return runs


def _run(command: list[str]) -> Run:
    with tempfile.TemporaryFile() as errors:
        used = run_measured(command, stdout=subprocess.DEVNULL, stderr=errors.fileno())
        if used.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command[:5])} … failed: {errors.read().decode()[-2000:]}")
    return Run(used.seconds, used.cpu_seconds, used.peak_bytes / 2**30)


def _told(runs: list[Run]) -> str:
    seconds = statistics.median(run.seconds for run in runs)
    return f"{seconds:.1f} s (peak memory {max(run.peak_gib for run in runs):.2f} GiB)"


def _ratio(runs: dict[str, list[Run]], one: str, other: str) -> str:
    wall = [a.seconds / b.seconds for a, b in zip(runs[one], runs[other], strict=True)]
    cpu = [a.cpu_seconds / b.cpu_seconds for a, b in zip(runs[one], runs[other], strict=True)]
    pairs = ", ".join(f"{ratio:.2f}" for ratio in wall)
    return f"{statistics.median(wall):.2f} (of pairs: {pairs}; of processor time: {statistics.median(cpu):.2f})"


def _sizes(before: tuple[Path, Path], after: tuple[Path, Path]) -> str:
    sizes = [
        sum(path.stat().st_size for trace in traces for path in trace.rglob("*.parquet")) for traces in (before, after)
    ]
    return f"both traces: {sizes[0] / 1e9:.2f} GB before, {sizes[1] / 1e9:.2f} GB after"


if __name__ == "__main__":
    main()
