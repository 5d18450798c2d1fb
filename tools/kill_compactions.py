"""Kills compactions at random moments, beside a writer at work and a reader that never stops, and counts the rows.

    python tools/kill_compactions.py [--kills 40] [--parts 200] [--seed 0]

At every moment the reader must see each row once. After the last kill a compaction runs to its end; what it leaves must
be the rows that were there, in few parts, and no other file.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tracekit.store import Trace, TraceWriter, compact, create_trace

_COMPACT = """
import sys
from tracekit.store import compact
print("begun", flush=True)
compact(sys.argv[1], num_buckets=int(sys.argv[2]), patience_seconds=60)
"""

# Appends rows to one table and seals small parts, until it is told to end.
_WRITE = """
import sys, time
from tracekit.store import TraceWriter
with TraceWriter(sys.argv[1], run_id="live", writer="live", part_bytes=4000, flush_seconds=0.05) as writer:
    print("begun", flush=True)
    number = 0
    while not sys.stdin.closed:
        writer.append("outcomes", {"request_id": [f"q{number}"], "num_output_tokens": [number]})
        number += 1
        time.sleep(0.002)
        if number % 100 == 0:
            print(number, flush=True)
            if sys.stdin.readline() == "end\\n":
                break
print(number, flush=True)
"""


@dataclass
class Series:
    """What a series of kills came to.

    Attributes:
        num_kills: compactions that were killed.
        num_ended: those that ended before their kill.
        num_pending: kills after which a compaction was in force, and its files not in place.
        num_reads: how often all rows were read meanwhile.
        failures: what a reader saw that it must not see.
    """

    num_kills: int = 0
    num_ended: int = 0
    num_pending: int = 0
    num_reads: int = 0
    failures: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--parts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tracekit-kills-") as scratch:
        series = kill_series(Path(scratch) / "run.trace", args.kills, args.parts, random.Random(args.seed))
    print(
        f"{series.num_kills} compactions killed ({series.num_pending} between their commit and their end), "
        f"{series.num_ended} ended before; all rows were read {series.num_reads} times meanwhile"
    )
    for failure in series.failures:
        print(f"WRONG: {failure}")
    sys.exit(1 if series.failures or not series.num_kills else 0)


def kill_series(root: Path, num_kills: int, num_parts: int, chance: random.Random) -> Series:
    """Makes a trace at `root`, and kills compactions of it."""
    _make(root, num_parts)
    series = Series()
    stop = threading.Event()
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITE, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    reader = threading.Thread(target=_read_on, args=(root, num_parts, series, stop))
    reader.start()
    try:
        seconds = _undisturbed(root, series)
        while series.num_kills < num_kills:
            # Rows that came meanwhile, and another number of buckets, give each of them something to do.
            _tell(writer, "go on\n")
            _kill(root, chance.choice((1, 2, 4, 8)), chance.uniform(0, seconds / 2), series)
        _tell(writer, "end\n")
        num_live = int(writer.communicate()[0].splitlines()[-1])
    finally:
        stop.set()
        reader.join()
        writer.kill()
    _check(root, num_parts, series)
    compact(root, num_buckets=4)
    _check(root, num_parts, series, num_live)
    _check_files(root, series)
    return series


def _make(root: Path, num_parts: int) -> None:
    create_trace(root, "record")
    with TraceWriter(root, run_id="run", writer="w", flush_seconds=3600) as writer:
        for number in range(num_parts):
            key = {"request_id": [f"q{number % 7}"], "position": [number]}
            writer.append("tokens", {**key, "token_id": [number], "forced": False, "is_prompt": False})
            writer.append("events", {"time_ns": [number], "kind": "paused"})
            writer.seal()


def _undisturbed(root: Path, series: Series) -> float:
    process, started = _start(root, 2), time.monotonic()
    if process.wait():
        series.failures.append(f"a compaction failed with exit code {process.returncode}")
    return time.monotonic() - started


def _start(root: Path, num_buckets: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", _COMPACT, str(root), str(num_buckets)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _kill(root: Path, num_buckets: int, seconds: float, series: Series) -> None:
    process = _start(root, num_buckets)
    time.sleep(seconds)
    process.kill()
    if process.wait() == -signal.SIGKILL:
        series.num_kills += 1
        series.num_pending += bool(list((root / "journal").glob("*/compaction.json")))
    elif process.returncode:
        series.failures.append(f"a compaction failed with exit code {process.returncode}")
    else:
        series.num_ended += 1


def _tell(writer: subprocess.Popen[str], line: str) -> None:
    assert writer.stdin is not None
    writer.stdin.write(line)
    writer.stdin.flush()


def _read_on(root: Path, num_parts: int, series: Series, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            _check(root, num_parts, series)
        except Exception as error:  # noqa: BLE001
            series.failures.append(f"{type(error).__name__}: {error}")
        series.num_reads += 1
        # A reader that never pauses keeps a compaction from its end.
        time.sleep(0.02)


def _check(root: Path, num_parts: int, series: Series, num_live: int | None = None) -> None:
    trace = Trace(root)
    for table, column in (("tokens", "token_id"), ("events", "time_ns")):
        found = sorted(trace.read(table, [column]).column(0).to_pylist())
        if found != list(range(num_parts)):
            series.failures.append(f"{table} showed {len(found)} rows of {num_parts}, {len(set(found))} different ones")
    live = sorted(trace.read("outcomes", ["num_output_tokens"]).column(0).to_pylist())
    if live != list(range(len(live))) or (num_live is not None and len(live) != num_live):
        series.failures.append(f"outcomes showed {len(live)} rows, {len(set(live))} different ones, of {num_live}")


def _check_files(root: Path, series: Series) -> None:
    for path in root.rglob("*"):
        name = path.relative_to(root)
        known = path.name in ("manifest.json", ".recover.lock", "empty-000000.parquet")
        if path.is_file() and not known and not path.name.startswith("compact-"):
            series.failures.append(f"{name} was left behind")


if __name__ == "__main__":
    main()
