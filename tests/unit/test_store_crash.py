"""What stays of a trace when writers are cut off, killed, watched, or find the disk full."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tracekit.errors import InputError
from tracekit.schema import record_batch
from tracekit.store import Trace, TraceWriter, create_trace, recover, roll_back
from tracekit.store.journal import JournalWriter, read_journal
from tracekit.store.lease import is_live
from tracekit.store.parts import PartWriter

# Appends rows 0, 1, 2, … and says after each flush how many rows are safe.
ENDLESS_WRITER = """
import sys
from tracekit.store import TraceWriter
writer = TraceWriter(sys.argv[1], run_id="r", writer=sys.argv[2], part_bytes=int(sys.argv[3]), flush_seconds=3600)
for time in range(10**9):
    writer.append("events", {"time_ns": [time], "kind": "paused", "attributes": "x" * (time % 50)})
    if time % 7 == 6:
        writer.flush()
        print(time + 1, flush=True)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "a.trace"
    create_trace(path, "record")
    return path


def event_times(root: Path) -> list[int]:
    times: list[int] = Trace(root).read("events", ["time_ns"]).column("time_ns").to_pylist()
    return times


def start_writer(root: Path, writer: str, part_bytes: int = 1 << 30) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ENDLESS_WRITER, str(root), writer, str(part_bytes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill(process: subprocess.Popen[str]) -> int:
    """Kills a writer without warning; returns how many rows it had said were safe."""
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[0].splitlines()
    return int(said[-1]) if said and said[-1].isdigit() else 0


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def batches_of(sizes: list[int], seed: int = 0) -> Iterator[pa.RecordBatch]:
    """Batches whose content hardly compresses, so that they span zstd blocks."""
    generator = np.random.default_rng(seed)
    for index, size in enumerate(sizes):
        logits = generator.standard_normal((2, size)).astype(np.float32)
        fixed = {"run_id": "r", "request_id": f"q{index}", "source_dtype": "float32"}
        yield record_batch("logits", {**fixed, "position": [index, index], "logits": logits})


class TestCutJournal:
    @pytest.mark.parametrize(
        ("sizes", "num_cuts"), [([1, 3, 0, 200, 1, 30], None), ([20_000, 5, 70_000, 1, 40_000], 400)]
    )
    def test_no_flushed_batch_is_lost_and_none_invented(
        self, tmp_path: Path, sizes: list[int], num_cuts: int | None
    ) -> None:
        batches = list(batches_of(sizes))
        whole = tmp_path / "whole.arrows.zst"
        journal = JournalWriter(whole, batches[0].schema)
        ends = []
        for batch in batches:
            journal.append(batch)
            ends.append(whole.stat().st_size)
        content = whole.read_bytes()
        cuts = set(range(len(content) + 1))
        if num_cuts is not None:
            near = {end + offset for end in ends for offset in (-2, -1, 0, 1, 2)}
            cuts = cuts & (near | set(random.Random(1).sample(sorted(cuts), num_cuts)))
        cut_file = tmp_path / "cut.arrows.zst"
        for cut in sorted(cuts):
            cut_file.write_bytes(content[:cut])
            found = list(read_journal(cut_file))
            num_flushed = sum(end <= cut for end in ends)
            assert num_flushed <= len(found) <= num_flushed + 1, cut
            assert all(one.equals(other) for one, other in zip(found, batches, strict=False)), cut


class TestKilledWriter:
    @pytest.mark.parametrize("part_bytes", [1 << 30, 1500])
    def test_loses_at_most_what_was_not_flushed(self, root: Path, part_bytes: int) -> None:
        num_sealed = 0
        for attempt, seconds in enumerate((0.0, 0.02, 0.05, 0.1, 0.2)):
            trace = root.with_name(f"{attempt}.trace")
            shutil.copytree(root, trace)
            process = start_writer(trace, "w", part_bytes)
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(seconds)
            safe = max(kill(process), 7)
            times = event_times(trace)
            assert times == list(range(len(times)))
            assert safe <= len(times) <= safe + 7
            num_sealed += len(list((trace / "events").glob("w-*.parquet")))

            num_journalled = Trace(trace).snapshot("events").journal_rows.num_rows
            assert recover(trace) == ({"events": num_journalled} if num_journalled else {})
            assert event_times(trace) == times
            recovered = files(trace)
            assert not any(name.endswith((".lease", ".zst")) for name in recovered)
            assert recover(trace) == {}
            assert files(trace) == recovered
        assert (num_sealed > 5) == (part_bytes == 1500)

    def test_killed_between_part_and_journal(self, root: Path) -> None:
        writer = TraceWriter(root, run_id="r", writer="w")
        writer.append("events", {"time_ns": [1], "kind": "paused"})
        writer.flush()
        journal = root / "journal" / "events" / "w-000000.arrows.zst"
        content = journal.read_bytes()
        writer.close()
        journal.write_bytes(content)
        assert recover(root) == {}
        assert event_times(root) == [1]
        assert not journal.exists()

    def test_killed_while_a_part_was_written(self, root: Path) -> None:
        unfinished = {name: root / "events" / f".{name}-000000.parquet.77" for name in ("dead", "living")}
        for path in unfinished.values():
            path.write_bytes(b"PAR1 half")
        with TraceWriter(root, run_id="r", writer="living"):
            recover(root)
            assert {name for name, path in unfinished.items() if path.exists()} == {"living"}

    def test_killed_before_the_first_batch_was_whole(self, root: Path) -> None:
        (root / "journal" / "events" / "w-000000.arrows.zst").write_bytes(b"\x28\xb5\x2f\xfd")
        assert event_times(root) == []
        assert recover(root) == {}
        assert not list((root / "journal" / "events").iterdir())

    def test_child_of_a_writer_does_not_keep_it_alive(self, root: Path) -> None:
        script = """
import os, signal, sys, time
from tracekit.store import TraceWriter
writer = TraceWriter(sys.argv[1], run_id="r", writer="w")
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
        parent = subprocess.Popen([sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert parent.wait() == -signal.SIGKILL
            deadline = time.monotonic() + 10  # the child may not have run yet
            while is_live(root / "journal" / "w.lease"):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            os.kill(child, signal.SIGKILL)


class TestLivingWriter:
    def test_its_journal_is_left_alone(self, root: Path) -> None:
        living, dead = start_writer(root, "living"), start_writer(root, "dead")
        assert living.stdout is not None
        assert dead.stdout is not None
        living.stdout.readline()
        dead.stdout.readline()
        kill(dead)
        try:
            assert recover(root)["events"] >= 7
            assert recover(root) == {}
            assert (root / "journal" / "living.lease").exists()
            assert (root / "journal" / "events" / "living-000000.arrows.zst").exists()
            assert not (root / "journal" / "events" / "dead-000000.arrows.zst").exists()
            assert not (root / "events" / "living-000000.parquet").exists()
        finally:
            kill(living)
        assert recover(root)["events"] >= 7

    def test_reader_beside_it_sees_each_row_once(self, root: Path) -> None:
        process = start_writer(root, "w", part_bytes=600)
        assert process.stdout is not None
        process.stdout.readline()
        seen: list[int] = []
        try:
            deadline = time.monotonic() + 4
            while time.monotonic() < deadline:
                times = event_times(root)
                assert times == list(range(len(times)))
                seen.append(len(times))
                snapshot = Trace(root).snapshot("events")
                assert len(set(snapshot.parts)) == len(snapshot.parts)
        finally:
            safe = kill(process)
        assert seen == sorted(seen)
        assert len(set(seen)) > 5
        assert len(list((root / "events").glob("w-*.parquet"))) > 20
        assert len(event_times(root)) >= safe

    def test_recovery_by_two_at_once(self, root: Path) -> None:
        for name in "abcdefgh":
            writer = TraceWriter(root, run_id="r", writer=name)
            writer.append("events", {"time_ns": [ord(name)], "kind": "paused"})
            writer.flush()
            writer._lease._forget()  # what a killed process leaves
        counts: list[int] = []
        threads = [threading.Thread(target=lambda: counts.append(recover(root).get("events", 0))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(counts) == 8
        assert event_times(root) == [ord(name) for name in "abcdefgh"]


@contextlib.contextmanager
def full_disk(limit: int = 40_000) -> Iterator[None]:
    """Lets this process write files up to `limit` bytes only; pytest's own output may be such a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestDiskFull:
    def fill(self, writer: TraceWriter, num_flushes: int) -> None:
        for batch in batches_of([2_000] * num_flushes):
            writer.append("logits", {name: batch.column(name) for name in batch.schema.names if name != "run_id"})
            writer.flush()

    def requests(self, root: Path) -> list[str]:
        found: list[str] = Trace(root).read("logits", ["request_id"]).column("request_id").to_pylist()
        return found

    @full_disk()
    def test_earlier_parts_and_flushed_rows_stay(self, root: Path) -> None:
        writer = TraceWriter(root, run_id="r", writer="w")
        self.fill(writer, 1)
        writer.seal()
        part = root / "logits" / "w-000000.parquet"
        content = part.read_bytes()
        with pytest.raises(InputError, match=r"a\.trace cannot be written to: File too large; .* `tracekit recover "):
            self.fill(writer, 5)
        expected = ["q0", "q0", "q0", "q0", "q1", "q1"]  # 16 kB each: the third after the part is too much
        assert self.requests(root) == expected
        for _ in range(2):
            with pytest.raises(InputError, match="File too large"):
                writer.close()
        assert part.read_bytes() == content
        assert not list((root / "logits").glob(".*"))
        assert recover(root) == {"logits": 4}
        assert self.requests(root) == expected

    @full_disk()
    def test_other_tables_are_still_written(self, root: Path) -> None:
        writer = TraceWriter(root, run_id="r", writer="w")
        with pytest.raises(InputError, match="File too large"):
            self.fill(writer, 5)
        writer.append("events", {"time_ns": [1], "kind": "recorder_disabled"})
        with pytest.raises(InputError, match="File too large"):
            writer.close()
        assert event_times(root) == [1]

    def test_rows_are_written_once_there_is_room(self, root: Path) -> None:
        writer = TraceWriter(root, run_id="r", writer="w")
        with full_disk(), pytest.raises(InputError, match="File too large"):
            self.fill(writer, 3)
        with pytest.raises(InputError, match="File too large"):
            writer.flush()
        writer.seal()
        assert self.requests(root) == ["q0", "q0", "q1", "q1", "q2", "q2"]
        self.fill(writer, 1)
        assert self.requests(root) == ["q0", "q0", "q1", "q1", "q2", "q2", "q0", "q0"]
        writer.close()

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
    @pytest.mark.parametrize("failing", [*({i} for i in range(6)), {0, 1, 2}, {1, 4}, {2, 3, 4}, set(range(5))])
    def test_part_that_fails_halfway_is_made_again(
        self, failing: set[int], error: BaseException, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The writes that fail are planted: when a real disk fills up, the journal fails with the part."""
        write, calls = PartWriter.write, itertools.count()

        def write_or_fail(part: PartWriter, rows: pa.Table) -> None:
            write(part, rows.slice(0, 1))  # what a failed write leaves
            if next(calls) in failing:
                raise error
            if rows.num_rows > 1:
                write(part, rows.slice(1))

        monkeypatch.setattr(PartWriter, "write", write_or_fail)
        writer = TraceWriter(root, run_id="r", writer="w", part_bytes=2_000, flush_seconds=3600)
        expected = []
        for time_ns in range(30):
            writer.append("events", {"time_ns": [time_ns] * 3, "kind": "paused"})
            expected += [time_ns] * 3
            with contextlib.suppress(InputError, KeyboardInterrupt):
                writer.flush()
            assert sorted(event_times(root)) == expected
            assert writer.num_unsaved("events") == 0
        for _ in failing:
            with contextlib.suppress(InputError, KeyboardInterrupt):
                writer.seal()
        writer.close()
        assert next(calls) > max(failing)
        assert sorted(event_times(root)) == expected
        assert not list((root / "events").glob(".*"))
        assert not list((root / "journal" / "events").iterdir())

    def test_trace_that_was_removed_is_not_made_again(self, root: Path) -> None:
        writer = TraceWriter(root, run_id="r", writer="w")
        shutil.rmtree(root)
        writer.append("events", {"time_ns": [1], "kind": "paused"})
        with pytest.raises(InputError, match=r"a\.trace cannot be written to: No such file or directory"):
            writer.flush()
        with pytest.raises(InputError, match="No such file or directory"):
            writer.close()
        assert not root.exists()

    def test_trace_that_cannot_be_made_leaves_nothing(self, tmp_path: Path) -> None:
        with full_disk(100), pytest.raises(InputError, match=r"b\.trace cannot be made: File too large"):
            create_trace(tmp_path / "b.trace", "record")
        assert not (tmp_path / "b.trace").exists()


class TestCheckpoint:
    def add(self, root: Path, times: list[int], *, seal: bool = False) -> TraceWriter:
        writer = TraceWriter(root, run_id="r", writer="w")
        for time_ns in times:
            writer.append("events", {"time_ns": [time_ns], "kind": "paused"})
            writer.flush()
            if seal:
                writer.seal()
        return writer

    def test_what_came_after_it_is_taken_back(self, root: Path) -> None:
        with TraceWriter(root, run_id="r", writer="other") as other:
            other.append("events", {"time_ns": [100], "kind": "paused"})
        writer = self.add(root, [1, 2])
        checkpoint = writer.checkpoint()
        assert sorted(event_times(root)) == [1, 2, 100]
        writer.append("events", {"time_ns": [3], "kind": "paused"})
        writer.append("outcomes", {"request_id": "a"})
        writer.close()
        for times, seal in (([4], True), ([5], False), ([6, 7], True)):
            # Whatever a writer of the name does, and however it ends.
            writer = self.add(root, times, seal=seal)
            if seal:
                writer.close()
            else:
                writer._lease._forget()
            roll_back(root, "w", checkpoint)
            assert sorted(event_times(root)) == [1, 2, 100]
            assert Trace(root).num_rows("outcomes") == 0
        # Tables that a later writer did not touch are in its checkpoint too.
        again = self.add(root, [])
        again.append("outcomes", {"request_id": "b"})
        later = again.checkpoint()
        again.append("events", {"time_ns": [8], "kind": "paused"})
        again.close()
        roll_back(root, "w", later)
        assert sorted(event_times(root)) == [1, 2, 100]
        assert Trace(root).num_rows("outcomes") == 1

    def test_a_living_writer_is_left_alone(self, root: Path) -> None:
        with self.add(root, [1]), pytest.raises(InputError, match="writer 'w' is at work"):
            roll_back(root, "w", {})
        assert sorted(event_times(root)) == [1]
