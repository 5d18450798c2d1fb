"""Limits of memory, threads and temporary files: what is refused, and that DuckDB keeps to them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from factories import make_request, make_trace
from tracekit import connect
from tracekit.errors import ConfigError
from tracekit.limits import Limits


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("4GB", 4_000_000_000), ("512MiB", 536_870_912), ("1.5 gib", 1_610_612_736), ("100000 kb", 100_000_000)],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert Limits(text).memory_bytes == num_bytes
    assert Limits().memory_bytes is None
    # DuckDB understands the same sizes, and tells them in binary units, with one decimal.
    connection = duckdb.connect(config={"memory_limit": text})
    number, unit = connection.sql("SELECT current_setting('memory_limit')").fetchall()[0][0].split()
    assert float(number) * 1024 ** (1 + ("KiB", "MiB", "GiB").index(unit)) == pytest.approx(num_bytes, rel=0.05)


@pytest.mark.parametrize("text", ["4", "GB", "4 gigs", "-4GB", "4GB 2", "80%", ""])
def test_what_is_no_size(text: str) -> None:
    message = rf"memory limit '{re.escape(text)}' is not a number and a unit \(KB, MB, .*; give one like '4GB'"
    with pytest.raises(ConfigError, match=message):
        Limits(text)


def test_what_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for limits, message in (
        (("63MB",), "memory limit '63MB' is too small; give at least 64MB"),
        ((None, 0), "0 threads cannot compute; give at least 1"),
        ((None, None, tmp_path / "none"), "none is no folder for temporary files; make it, or name another one"),
        ((None, None, tmp_path / "file"), "file is no folder for temporary files"),
    ):
        with pytest.raises(ConfigError, match=message):
            Limits(*limits)


def test_sessions_keep_to_them(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    root = make_trace(tmp_path / "a")
    names = ("memory_limit", "threads", "temp_directory")
    query = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
    with connect(root, memory_limit="1GiB", threads=1, temp_dir=scratch) as session:
        ((memory, threads, folder),) = session.sql(query).rows()
    assert (memory, threads) == ("1.0 GiB", 1)
    assert Path(folder).parent == scratch
    with pytest.raises(ConfigError, match="give one like"):
        connect(root, memory_limit="much")


def test_what_does_not_fit_goes_to_the_folder(tmp_path: Path) -> None:
    """Sorts 300 MB of numbers with 100 MB of memory; without a folder to spill to, it cannot be done."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    root = make_trace(tmp_path / "a")
    query = "SELECT i FROM (SELECT i, hash(i) AS h, i + 1 AS j, i + 2 AS k FROM range(8_000_000) AS t (i)) ORDER BY h"
    seen = False
    with connect(root, memory_limit="100MB", threads=2, temp_dir=scratch) as session:
        total = 0
        for batch in session.sql(query).batches():
            seen = seen or bool(list(scratch.rglob("*")))
            total += sum(batch.column(0).to_numpy().tolist())
    assert total == 8_000_000 * 7_999_999 // 2
    assert seen
    assert os.listdir(scratch) == []


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[float] = []
    requests = [make_request(f"q{number}") for number in range(3)]
    root = make_trace(tmp_path / "a", requests=requests)
    with connect(root, progress=told.append, threads=1) as session:
        query = "SELECT count(*) FROM range(60_000_000) AS t (i), range(3) AS u (j) WHERE hash(i) % 7 = j"
        assert session.sql(query).rows()[0][0] > 0
        # More queries than are watched still answer.
        assert [session.sql(f"SELECT {number}").rows() for number in range(120)] == [[(n,)] for n in range(120)]
    assert told
    assert max(told) > 1
    assert max(told) <= 100


@pytest.mark.parametrize("command", ["query", "diff", "compact"])
def test_options_of_commands(tmp_path: Path, command: str) -> None:
    root = make_trace(tmp_path / "a")
    arguments = {
        "query": [str(root), "SELECT 1 AS x"],
        "diff": [str(root), str(root), "--format", "json"],
        "compact": [str(root)],
    }[command]
    start = [sys.executable, "-m", "tracekit.cli.main", command, *arguments]
    limits = ["--memory-limit", "1GB", "--threads", "2", "--temp-dir", str(tmp_path)]
    assert subprocess.run([*start, *limits], capture_output=True, text=True).returncode == 0
    refused = subprocess.run([*start, "--memory-limit", "lots"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("tracekit: error: memory limit 'lots' is not a number and a unit")
