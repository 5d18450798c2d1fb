"""Where a cluster is looked for, and how many workers one has room for; no Ray is started."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from factories import make_trace
from tracekit.cli.replay import command
from tracekit.cluster import connection
from tracekit.cluster.connection import Room, connect, room_for
from tracekit.errors import BackendUnavailableError, ConfigError
from tracekit.replay import Cluster, replay


def test_an_address_where_nothing_answers_is_an_error_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        # Bound, but nobody listens.
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with pytest.raises(
                BackendUnavailableError, match=f"no Ray cluster can be used at address '{address}'"
            ) as info:
                connect(Cluster(address))
            assert info.value.exit_code == 3
            assert "\n" not in str(info.value)
    with pytest.raises(BackendUnavailableError, match="at address 'nonsense'"):
        connect(Cluster("nonsense"))


def test_the_environment_names_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(BackendUnavailableError, match=r"at address '127\.0\.0\.1:1'"):
        connect(Cluster())


CPUS, GPUS = {"CPU": 16.0}, {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "cluster", "expected"),
    [
        ([CPUS], Cluster(), Room(1, 1.0, 0.0)),
        ([CPUS, CPUS, {}], Cluster(), Room(2, 1.0, 0.0)),
        ([CPUS, CPUS], Cluster(num_workers=20), Room(20, 1.0, 0.0)),
        ([GPUS, GPUS, CPUS], Cluster(), Room(8, 1.0, 1.0)),
        ([GPUS, GPUS], Cluster(gpus_per_worker=0.5), Room(16, 1.0, 0.5)),
        ([GPUS, GPUS], Cluster(gpus_per_worker=0), Room(2, 1.0, 0.0)),
        ([GPUS, GPUS], Cluster(cpus_per_worker=8), Room(4, 8.0, 1.0)),
        ([GPUS], Cluster(num_workers=3, cpus_per_worker=0), Room(3, 0.0, 1.0)),
        ([CPUS], Cluster(cpus_per_worker=0), Room(1, 0.0, 0.0)),
    ],
)
def test_how_many_workers_there_are(
    nodes: list[dict[str, float]], cluster: Cluster, expected: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(monkeypatch, nodes)
    assert room_for(cluster) == expected


@pytest.mark.parametrize(
    ("nodes", "cluster", "message"),
    [
        (
            [CPUS, CPUS],
            Cluster(num_workers=33),
            "no room for 33 workers of 1 CPUs and 0 GPUs: its 2 nodes have 16 CPUs",
        ),
        ([CPUS], Cluster(gpus_per_worker=1), "no room for 1 workers of 1 CPUs and 1 GPUs"),
        # What a worker needs stands on one node or on none.
        ([CPUS, CPUS], Cluster(num_workers=1, cpus_per_worker=17), "no room for 1 workers of 17 CPUs"),
    ],
)
def test_a_cluster_without_room_is_an_error(
    nodes: list[dict[str, float]], cluster: Cluster, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(monkeypatch, nodes)
    with pytest.raises(ConfigError, match=message):
        room_for(cluster)


def _pretend(monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]]) -> None:
    dead = {"Alive": False, "Resources": GPUS}
    monkeypatch.setattr(
        connection.ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes] + [dead]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": 0}, "num-workers must be at least 1, not 0"),
        ({"gpus_per_worker": 1.5}, "gpus-per-worker must be a whole number, or one between 0 and 1, not 1.5"),
        ({"cpus_per_worker": -1.0}, "cpus-per-worker must be .* not -1"),
    ],
)
def test_impossible_settings_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cluster(**settings)


def test_options_of_a_cluster_want_one(tmp_path: Path) -> None:
    arguments = [str(make_trace(tmp_path / "t")), "-o", str(tmp_path / "o"), "--num-workers", "2"]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert "--num-workers is of a cluster: give --engine ray with it" in done.stderr


def test_without_ray_a_replay_on_a_cluster_exits_with_3(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "t")
    code = "import sys; sys.modules['ray'] = None\nfrom tracekit.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    arguments = ["replay", str(trace), "-o", str(tmp_path / "o"), "--model", "m", "--engine", "ray"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot be spread over a cluster: 'ray' is not installed; pip install 'tracekit[ray]'" in done.stderr
    assert not list(tmp_path.glob("o*"))


def test_a_backend_with_an_engine_of_its_own_is_not_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tracekit.replay.backends.hf import HfBackend

    monkeypatch.setattr(HfBackend, "in_process", False)
    with pytest.raises(ConfigError, match="'hf' brings an engine of its own and is not spread over a cluster"):
        replay(make_trace(tmp_path / "t"), tmp_path / "o", model="m", cluster=Cluster())
