"""Replays spread over a Ray cluster: the trace is that of one process, whatever happens to workers."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from click.testing import CliRunner

import made_backend
from factories import make_request, make_trace
from tiny_model import VOCAB_SIZE, make_tiny_model
from tracekit.cli.replay import command
from tracekit.errors import BackendUnavailableError, ModelError
from tracekit.replay import Cluster, Progress, driver, replay
from tracekit.store import Trace, TraceWriter

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from kill_replays import content

pytestmark = pytest.mark.usefixtures("cluster")

TESTS = Path(__file__).parents[1]
NUM_REQUESTS = 12
TWO = Cluster(num_workers=2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of one node with room for two workers, which finds the backends of the tests; its address."""
    packages = tmp_path_factory.mktemp("packages")
    made_backend.install(packages, {"made": "made_backend:MadeBackend", "fragile": "fragile_backend:FragileBackend"})
    paths = [str(packages), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    num_threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(packages)
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        # Two workers on two cores; they compute with as many threads as this process would.
        torch.set_num_threads(1)
        # Little shared memory, so that it runs in small containers.
        ray.init(
            "local",
            num_cpus=2,
            object_store_memory=100 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()
        torch.set_num_threads(num_threads)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """Requests of two runs, of one to a dozen tokens."""
    requests = [
        make_request(
            f"r{number}",
            prompt=[number * 7 + place for place in range(1 + number % 5)],
            token_ids=[(number * 31 + place * 17) % (VOCAB_SIZE - 1) for place in range(1 + number)],
            temperature=(0.0, 0.7, 1.0)[number % 3],
            top_p=(1.0, 0.9)[number % 2],
        )
        for number in range(NUM_REQUESTS)
    ]
    path = make_trace(tmp_path / "parent", requests=requests[:-2])
    with TraceWriter(path, run_id="second", writer="w1") as writer:
        for request in requests[-2:]:
            writer.append("requests", request.request)
            writer.append("tokens", request.tokens)
    return path


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    folder = tmp_path / "diary"
    folder.mkdir()
    return folder


def processes(diary: Path, what: str) -> set[int]:
    return {int(path.name.rpartition("-")[2]) for path in diary.glob(f"{what}-*")}


def rows_but(path: Path, *columns: str) -> dict[str, Any]:
    """The content of a trace, without these columns of `runs`."""
    found = content(path)
    return found | {"runs": found["runs"].drop_columns([*columns])}


def test_two_workers_give_the_rows_of_one_process(
    cluster: str, parent: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = make_tiny_model(tmp_path_factory.mktemp("model"))
    settings: dict[str, Any] = {"model": model, "batch_tokens": 24, "hidden": True, "logits": True}
    summary = replay(parent, tmp_path / "here", **settings)
    expected = content(tmp_path / "here")
    num_tokens = sum(1 + number for number in range(NUM_REQUESTS))
    assert {name: expected[name].num_rows for name in ("runs", "requests", "tokens", "hidden", "logits")} == {
        "runs": 2,
        "requests": NUM_REQUESTS,
        "tokens": num_tokens,
        "hidden": num_tokens,
        "logits": num_tokens,
    }

    arguments = [str(parent), "-o", str(tmp_path / "there"), "--model", str(model), "--batch-tokens", "24"]
    options = ["--hidden", "--logits", "--engine", "ray", "--address", cluster, "--num-workers", "2"]
    done = CliRunner().invoke(command, [*arguments, *options])
    assert done.exit_code == 0, done.output
    assert f"{num_tokens} tokens of {NUM_REQUESTS} requests scored" in done.stderr
    assert content(tmp_path / "there") == expected

    accident = tmp_path / "accident"
    settings |= {"backend": "fragile", "accident": str(accident), "dies_at": "r5"}
    again = replay(parent, tmp_path / "killed", cluster=TWO, **settings)
    assert accident.exists(), "no worker was killed"
    assert rows_but(tmp_path / "killed", "backend", "options") == rows_but(tmp_path / "here", "backend", "options")
    assert again.num_tokens == summary.num_tokens == num_tokens
    # A worker has torch and a model in memory.
    assert 100 << 20 < again.peak_bytes < 100 << 30


def test_batches_are_shared_and_rows_come_in_order(parent: Path, tmp_path: Path, diary: Path) -> None:
    settings: dict[str, Any] = {"backend": "made", "diary": str(diary), "batch_sequences": 2, "scale": 0.5}
    replay(parent, tmp_path / "here", **settings)
    for path in diary.iterdir():
        path.unlink()
    seen: list[Progress] = []
    replay(parent, tmp_path / "there", cluster=TWO, progress=seen.append, **settings, num_needed=2)
    assert rows_but(tmp_path / "there", "options") == rows_but(tmp_path / "here", "options")
    workers = processes(diary, "scored")
    assert len(workers) == 2
    assert os.getpid() not in workers
    assert processes(diary, "opened") == processes(diary, "closed") == workers
    # Progress is told batch by batch, the longest first within a run.
    assert [entry.num_sequences for entry in seen] == list(range(0, NUM_REQUESTS + 1, 2))
    rows = Trace(tmp_path / "there").read("tokens").to_pylist()
    assert [row["request_id"] for row in rows] == Trace(tmp_path / "here").read("tokens")["request_id"].to_pylist()
    ids = {row["request_id"]: list(row["prompt_token_ids"]) for row in Trace(parent).read("requests").to_pylist()}
    for row in rows:
        so_far = ids[row["request_id"]]
        so_far.append(row["token_id"])
        assert row["logprob"] == -(sum(so_far) % 97) / 16 * 0.5


def test_a_worker_killed_from_outside_changes_nothing(parent: Path, tmp_path: Path, diary: Path) -> None:
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.num_sequences == NUM_REQUESTS // 2 and not killed:
            killed.append(max(processes(diary, "opened")))
            os.kill(killed[0], signal.SIGKILL)

    settings: dict[str, Any] = {"backend": "made", "diary": str(diary), "num_needed": 2}
    replay(parent, tmp_path / "there", cluster=TWO, progress=kill, **settings)
    assert killed
    replay(parent, tmp_path / "here", **settings)
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_a_batch_that_no_worker_survives_is_named(parent: Path, tmp_path: Path, diary: Path) -> None:
    settings: dict[str, Any] = {"diary": str(diary), "dies_at": "r4", "dies_again": True, "batch_sequences": 2}
    with pytest.raises(
        BackendUnavailableError, match=r"3 workers were lost over the batch .* request 'r7': \S"
    ) as info:
        replay(parent, tmp_path / "out", backend="made", cluster=TWO, **settings)
    assert info.value.exit_code == 3
    assert "\n" not in str(info.value)
    assert len(processes(diary, "scored-r4")) == 3


def test_workers_that_die_while_they_open_the_backend_are_an_error(parent: Path, tmp_path: Path, diary: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="3 workers were lost over the opening of backend 'made'"):
        replay(
            parent,
            tmp_path / "out",
            backend="made",
            cluster=Cluster(num_workers=1),
            diary=str(diary),
            dies_opening=True,
        )
    assert len(processes(diary, "opened")) == 3
    assert not list(tmp_path.glob("out*"))


def test_what_a_worker_raises_comes_back_as_it_is(parent: Path, tmp_path: Path, diary: Path) -> None:
    arguments = [str(parent), "-o", str(tmp_path / "out"), "--backend", "made", "-O", f"diary={diary}"]
    done = CliRunner().invoke(command, [*arguments, "-O", "fails_at=r7", "--engine", "ray", "--num-workers", "1"])
    assert isinstance(done.exception, ModelError)
    assert str(done.exception) == "request 'r7' is not to my liking"
    assert processes(diary, "opened") == processes(diary, "closed")


def test_workers_that_are_not_alike_are_refused(parent: Path, tmp_path: Path, diary: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"workers are not alike: .* has engine_version '"):
        replay(parent, tmp_path / "out", backend="made", cluster=TWO, diary=str(diary), differs=True, num_needed=2)
    assert processes(diary, "opened") == processes(diary, "closed")


REPLAY = """
import os, signal, sys
from tracekit.replay import Cluster, driver, replay
driver.SAVE_SECONDS = 0.0
parent, out, diary, address = sys.argv[1:]
def kill(progress):
    if progress.num_sequences == 5: os.kill(os.getpid(), signal.SIGKILL)
replay(parent, out, backend="made", cluster=Cluster(address, num_workers=2), diary=diary, progress=kill)
"""


def test_a_replay_killed_on_a_cluster_goes_on_without_it(
    cluster: str, parent: Path, tmp_path: Path, diary: Path
) -> None:
    settings: dict[str, Any] = {"backend": "made", "diary": str(diary)}
    replay(parent, tmp_path / "whole", **settings)
    arguments = [str(parent), str(tmp_path / "out"), str(diary), cluster]
    done = subprocess.run([sys.executable, "-c", REPLAY, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    seen: list[Progress] = []
    replay(parent, tmp_path / "out", progress=seen.append, **settings)
    assert seen[0].num_sequences == 5
    assert 0 < seen[0].num_resumed_tokens < seen[0].total_tokens
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_an_interrupted_replay_goes_on_on_a_cluster(
    parent: Path, tmp_path: Path, diary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SAVE_SECONDS", 0.0)
    settings: dict[str, Any] = {"backend": "made", "diary": str(diary)}
    replay(parent, tmp_path / "whole", **settings)

    for where, num_sequences in ((None, 3), (TWO, 6)):

        def interrupt(progress: Progress, last: int = num_sequences) -> None:
            if progress.num_sequences == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            replay(parent, tmp_path / "out", cluster=where, progress=interrupt, **settings)
    # Those that were at work when it was interrupted have ended too.
    assert processes(diary, "closed") >= processes(diary, "scored")
    seen: list[Progress] = []
    replay(parent, tmp_path / "out", progress=seen.append, **settings)
    assert seen[0].num_sequences == 6
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_cluster_of_its_own_is_started_and_ended(parent: Path, tmp_path: Path, diary: Path) -> None:
    arguments = [str(parent), "-o", str(tmp_path / "out"), "--backend", "made", "-O", f"diary={diary}"]
    options = ["--engine", "ray", "--address", "local", "--num-workers", "2", "-O", "num_needed=2"]
    done = subprocess.run(
        [sys.executable, "-m", "tracekit.cli.main", "replay", *arguments, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert Trace(tmp_path / "out").num_rows("requests") == NUM_REQUESTS
    workers = processes(diary, "opened")
    assert len(workers) == 2
    # Ray ends them behind the command's back; on a busy machine that takes a while.
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(Path(f"/proc/{process}").exists() for process in workers):
        time.sleep(0.1)
    assert [process for process in workers if Path(f"/proc/{process}").exists()] == []
