"""Comparisons spread over a Ray cluster: the figures of one process, and its refusals, whatever happens to workers."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from click.testing import CliRunner

from factories import MadeRequest, make_request, make_trace
from tracekit import connect
from tracekit.analysis.figures import Figure, figures
from tracekit.analysis.sharing import Share
from tracekit.cli import diff, gate
from tracekit.cluster import Cluster
from tracekit.errors import AlignmentError, ConfigError, NotATraceError
from tracekit.store import compact
from tracekit.store.layout import Bucket

NUM_REQUESTS = 40
NUM_BUCKETS = 16
TWO = Cluster(num_workers=2)
# Sums of float64 in another order.
RELATIVE = 1e-12


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A cluster of one node with room for two workers, with little shared memory, so that small containers do."""
    ray.init(
        "local",
        num_cpus=2,
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


def rollout(seed: int = 0, *, diverging: bool = False, **columns: Any) -> list[MadeRequest]:
    """Requests with two samples a prompt; the same tokens for every seed unless they diverge, other logprobs."""
    tokens, noise = np.random.default_rng(0), np.random.default_rng(seed)
    found = []
    for number in range(NUM_REQUESTS):
        num = int(tokens.integers(1, 30))
        ids = tokens.integers(0, 100, num)
        logprob = -tokens.exponential(1.0, num) + noise.normal(0, 0.05, num)
        if diverging and number % 3 == 0:
            ids[num // 2 :] += 1
        own: dict[str, Any] = {name: values[number] for name, values in columns.items()}
        found.append(
            make_request(
                f"r{number}",
                prompt=[number // 2, 5],
                token_ids=ids.tolist(),
                logprob=logprob.astype(np.float32),
                forced=bool(seed and not diverging),
                tokens={"argmax_token_id": np.where(noise.random(num) < 0.8, ids, 777)},
                **{"group_id": f"g{number // 2}", **own},
            )
        )
    return found


def made(path: Path, requests: list[MadeRequest], *, num_buckets: int = NUM_BUCKETS, **how: Any) -> Path:
    make_trace(path, requests=requests, **how)
    compact(path, num_buckets=num_buckets)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    a = made(tmp_path / "a", rollout())
    return a, made(tmp_path / "b", rollout(1), role="replay", parent=a, run_id="b")


def assert_equal(found: list[Figure], expected: list[Figure]) -> None:
    assert len(found) == len(expected) > 50
    for one, other in zip(found, expected, strict=True):
        for name in Figure.__dataclass_fields__:
            value, wanted = getattr(one, name), getattr(other, name)
            if isinstance(wanted, float):
                assert value == pytest.approx(wanted, rel=RELATIVE, abs=1e-15), (one.basis, one.name, name)
            else:
                assert value == wanted, (one.basis, one.name, name)


@pytest.mark.parametrize(("align", "diverging"), [("request", False), ("external", True), ("prompt", True)])
def test_two_workers_give_the_figures_of_one_process(tmp_path: Path, align: str, diverging: bool) -> None:
    callers = [f"x{number}" for number in range(NUM_REQUESTS)]
    a = made(tmp_path / "a", rollout(external_id=callers))
    own = rollout(1, diverging=diverging, external_id=callers)
    # As many buckets as it likes: the trace with fewer decides.
    b = made(tmp_path / "b", own, num_buckets=4 * NUM_BUCKETS, run_id="b")
    how: dict[str, Any] = {"align": align}
    with connect(a, b, **how) as here, connect(a, b, cluster=TWO, **how) as spread:
        assert spread.alignment == here.alignment
        expected = figures(here)
        assert_equal(figures(spread), expected)
        assert any(figure.value for figure in expected if figure.name == "k3_kl")
        rates = {figure.name: figure.value for figure in expected if figure.basis == "requests"}
        assert rates["token_divergence_rate"] == (14 / 40 if diverging else 0)
        # Whatever else is asked is computed here, from all of both traces.
        for query in ("FROM first_divergence", "FROM aligned ORDER BY ALL", "SELECT count(*), min(d) FROM pairs"):
            assert spread.sql(query).rows() == here.sql(query).rows(), query


def test_the_command_says_the_same(pair: tuple[Path, Path]) -> None:
    arguments = [*map(str, pair), "--format", "json"]
    here, spread = (
        CliRunner().invoke(diff.command, [*arguments, *more], catch_exceptions=False)
        for more in ([], ["--engine", "ray", "--num-workers", "2"])
    )
    assert (here.exit_code, spread.exit_code) == (0, 0)
    expected, found = json.loads(here.stdout), json.loads(spread.stdout)
    for basis in ("raw", "processed"):
        for name, metric in expected["metrics"][basis].items():
            assert found["metrics"][basis][name]["num_tokens"] == metric["num_tokens"]
            if isinstance(metric["value"], float):
                assert found["metrics"][basis][name]["value"] == pytest.approx(metric["value"], rel=RELATIVE)
    assert {**found, "metrics": None} == {**expected, "metrics": None}


def test_the_gate_decides_the_same(pair: tuple[Path, Path]) -> None:
    for bound, exit_code in (("1", 0), ("1e-9", 1)):
        arguments = [*map(str, pair), "--require", f"k3_kl < {bound}", "--engine", "ray", "--num-workers", "2"]
        done = CliRunner().invoke(gate.command, arguments, catch_exceptions=False)
        assert done.exit_code == exit_code, done.output


def test_a_worker_that_is_killed_changes_nothing(pair: tuple[Path, Path]) -> None:
    with connect(*pair) as session:
        expected = figures(session)
    killed: list[int] = []

    def kill(per_cent: float) -> None:
        if per_cent < 100 and not killed:
            listed = subprocess.run(["pgrep", "-f", "ray::_measure_share"], capture_output=True, text=True).stdout
            for process in map(int, listed.split()):
                killed.append(process)
                os.kill(process, signal.SIGKILL)

    with connect(*pair, cluster=TWO, progress=kill) as session:
        assert_equal(figures(session), expected)
    assert killed


def test_progress_rises_to_the_end(pair: tuple[Path, Path]) -> None:
    seen: list[float] = []
    with connect(*pair, cluster=TWO, progress=seen.append):
        pass
    measured = [value for value in seen if value >= 0]
    assert measured[-1] == 100
    assert measured == sorted(measured)
    assert len(set(measured)) == 3


def test_what_must_be_refused_is_refused_in_the_same_words(tmp_path: Path) -> None:
    a = made(tmp_path / "a", rollout())
    others = {
        "another prompt": [
            *rollout(1)[:-1],
            make_request("r39", prompt=[99, 98], token_ids=[1, 2]),
        ],
        "off by one": [
            make_request(
                made_request.request["request_id"],
                prompt=[number // 2, 5],
                token_ids=[7, *list(made_request.tokens["token_id"])[:-1]],
            )
            for number, made_request in enumerate(rollout())
        ],
        "half of it": rollout(1)[:20],
        "none of it": [make_request("elsewhere", prompt=[77])],
    }
    for name, requests in others.items():
        b = made(tmp_path / name.replace(" ", "-"), requests, run_id="b")
        said = []
        for how in ({}, {"cluster": TWO}):
            with pytest.raises(AlignmentError) as info:
                connect(a, b, align="request", **how)  # type: ignore[arg-type]
            said.append(str(info.value))
        assert said[0] == said[1], name


def test_traces_that_are_not_compacted_are_refused(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    plain = make_trace(tmp_path / "plain", requests=rollout())
    message = rf"trace {plain} has rows of table '\w+' outside of buckets.* run `tracekit compact {plain}` first"
    for traces in ((plain, pair[1]), (pair[0], plain)):
        with pytest.raises(ConfigError, match=message):
            connect(*traces, align="request", cluster=TWO)


def test_groups_are_not_spread(pair: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(diff.command, [*map(str, pair), "--by", "request", "--engine", "ray"])
    assert done.exit_code == 2
    assert "--by reads all tokens in one process" in done.stderr
    done = CliRunner().invoke(diff.command, [*map(str, pair), "--num-workers", "2"])
    assert "--num-workers is of a cluster: give --engine ray with it" in done.stderr


def test_a_node_with_other_files_is_found_out(pair: tuple[Path, Path]) -> None:
    from tracekit.analysis.spread import _measure_share

    with pytest.raises(NotATraceError, match=r"holds trace .*, not elsewhere; all nodes must see the same files"):
        _measure_share(
            Share(0, 1),
            paths=list(pair),
            trace_ids=["elsewhere", "elsewhere"],
            pairing=None,
            limits=None,
            num_neighbours=1,
        )


def test_every_bucket_is_in_one_share() -> None:
    for num_shares in (1, 2, 8):
        shares = [Share(number, num_shares) for number in range(num_shares)]
        for bucket in range(8):
            assert sum(share.holds(Bucket(8, bucket)) for share in shares) == 1
            # Half a bucket is where the whole one is.
            (of_whole,) = (share.number for share in shares if share.holds(Bucket(8, bucket)))
            assert all(shares[of_whole].holds(Bucket(16, 2 * bucket + half)) for half in (0, 1))
    with pytest.raises(ConfigError, match="8 buckets do not make 16 shares"):
        Share(0, 16).holds(Bucket(8, 0))


INTERRUPTED = """
import signal, sys, threading, os, time
from tracekit import connect
from tracekit.cluster import Cluster
def interrupt(per_cent):
    if per_cent == 0: os.kill(os.getpid(), signal.SIGINT)
try:
    connect(sys.argv[1], sys.argv[2], cluster=Cluster("local", num_workers=1, gpus_per_worker=0), progress=interrupt)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_it(pair: tuple[Path, Path]) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, *map(str, pair)], capture_output=True, text=True)
    assert done.stdout == "interrupted\n", done.stderr
