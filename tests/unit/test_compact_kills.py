"""Compactions that are killed: whenever it happens, each row counts once, and the next one leaves nothing behind."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from compacted import content, files, many_parts
from tracekit.schema import table_names
from tracekit.store import compact, recover

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from kill_compactions import kill_series  # noqa: E402

# Compacts a copy of the trace once for each of its calls that change files, and is killed just before that call.
KILLED_AT_EACH_STEP = """
import os, shutil, signal, sys
from pathlib import Path
from tracekit.store import compact

root, out = Path(sys.argv[1]), Path(sys.argv[2])
step = 0

def dying(call):
    def counted(*arguments, **options):
        global step
        if step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        step += 1
        return call(*arguments, **options)
    return counted

for dies_at in range(10**6):
    copy = shutil.copytree(root, out / str(dies_at))
    child = os.fork()
    if child == 0:
        os.replace, os.unlink, os.fsync = dying(os.replace), dying(os.unlink), dying(os.fsync)
        Path.unlink = dying(Path.unlink)
        compact(copy, num_buckets=2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert status == 0, status
        break
"""


def litter(root: Path) -> list[str]:
    return [name for name in files(root) if "/." in name or name.endswith(("compaction.json", ".lease"))]


def test_at_each_step_that_changes_files(tmp_path: Path) -> None:
    root = many_parts(tmp_path / "a.trace", num_requests=3)
    for table in set(table_names()) - {"tokens", "events"}:
        for part in (root / table).glob("w*.parquet"):
            part.unlink()
    before = content(root)
    out = tmp_path / "killed"
    out.mkdir()
    subprocess.run([sys.executable, "-c", KILLED_AT_EACH_STEP, str(root), str(out)], check=True)
    killed = sorted(out.iterdir(), key=lambda path: int(path.name))
    whole = killed.pop()
    num_pending = 0
    for copy in killed:
        num_pending += bool(list((copy / "journal").glob("*/compaction.json")))
        assert content(copy) == before, copy.name
        again = Path(shutil.copytree(copy, copy.with_suffix(".again")))
        assert recover(copy) == {}
        assert content(copy) == before, copy.name
        assert litter(copy) == [], copy.name
        compact(again, num_buckets=2)
        assert content(again) == before, copy.name
        # A compaction that was in force is not made a second time.
        assert {name[: -len("000000.parquet")] for name in files(again) if "compact" in name} == {
            name[: -len("000000.parquet")] for name in files(whole) if "compact" in name
        }
        assert litter(again) == []
        assert not [name for name in files(again) if "/w" in name]
    assert len(killed) > 30
    assert 8 < num_pending < len(killed) - 8


def test_at_random_moments_beside_a_writer_and_a_reader(tmp_path: Path) -> None:
    series = kill_series(tmp_path / "a.trace", num_kills=5, num_parts=20, chance=random.Random(os.getpid()))
    assert series.failures == []
    assert series.num_kills == 5
    assert series.num_reads > 5
