"""What the driver does with any backend: it is closed, and rows about a run are written under the new run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import made_backend
from factories import make_request, make_trace
from made_backend import MadeBackend
from tracekit.errors import ModelError, OutputExistsError
from tracekit.replay import Progress, driver, replay
from tracekit.store import Trace, TraceWriter


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of a replay with the backend of another package."""
    made_backend.install(tmp_path / "packages", {"made": "made_backend:MadeBackend"})
    monkeypatch.syspath_prepend(tmp_path / "packages")
    (tmp_path / "diary").mkdir()
    return {"backend": "made", "diary": str(tmp_path / "diary")}


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    path = make_trace(tmp_path / "parent", run_id="one", requests=[make_request("a"), make_request("b")])
    with TraceWriter(path, run_id="two", writer="w1") as writer:
        late = make_request("c", token_ids=[7])
        writer.append("requests", late.request)
        writer.append("tokens", late.tokens)
    return path


def calls(tmp_path: Path) -> list[str]:
    """What the backend noted, without its process."""
    return sorted(path.name.rpartition("-")[0] for path in (tmp_path / "diary").iterdir())


def test_a_backend_is_closed_at_the_end(made: dict[str, Any], parent: Path, tmp_path: Path) -> None:
    replay(parent, tmp_path / "out", **made)
    assert calls(tmp_path) == ["closed", "opened", "scored-a", "scored-b", "scored-c"]


def _interrupt(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"fails_at": "a"}, ModelError),
        ({"progress": _interrupt}, KeyboardInterrupt),
    ],
)
def test_a_backend_is_closed_after_a_failure(
    settings: dict[str, Any], error: type[BaseException], made: dict[str, Any], parent: Path, tmp_path: Path
) -> None:
    with pytest.raises(error):
        replay(parent, tmp_path / "out", **made, **settings)
    assert {"opened", "closed"} <= set(calls(tmp_path))


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [("vocab_size", 5, "has a vocabulary of 5"), ("max_num_tokens", 2, "takes at most 2")],
)
def test_a_backend_that_does_not_fit_is_closed(
    attribute: str,
    value: int,
    message: str,
    made: dict[str, Any],
    parent: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _change(monkeypatch, lambda backend: setattr(backend, attribute, value))
    with pytest.raises(ModelError, match=message):
        replay(parent, tmp_path / "out", **made)
    assert calls(tmp_path) == ["closed", "opened"]


def test_a_backend_that_cannot_describe_itself_is_closed(
    made: dict[str, Any], parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: MadeBackend) -> None:
        raise ModelError("no words")

    monkeypatch.setattr(MadeBackend, "description", fail)
    with pytest.raises(ModelError, match="no words"):
        replay(parent, tmp_path / "out", **made)
    assert calls(tmp_path) == ["closed", "opened"]


def _change(monkeypatch: pytest.MonkeyPatch, change: Callable[[MadeBackend], None]) -> None:
    make = MadeBackend.__init__

    def changed(backend: MadeBackend, *args: Any) -> None:
        make(backend, *args)
        change(backend)

    monkeypatch.setattr(MadeBackend, "__init__", changed)


def test_a_replay_does_not_go_on_with_other_software(
    made: dict[str, Any], parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SAVE_SECONDS", 0.0)

    def stop(progress: Progress) -> None:
        if progress.num_tokens:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(parent, tmp_path / "out", progress=stop, **made)
    with monkeypatch.context() as patch:
        patch.setattr(MadeBackend, "description", lambda _: {"engine": "made", "engine_version": "2"})
        with pytest.raises(OutputExistsError, match='was begun with engine_version "1", not "2"'):
            replay(parent, tmp_path / "out", **made)
    assert replay(parent, tmp_path / "out", **made).num_resumed_tokens == 3


def test_a_restart_that_is_killed_while_it_removes_leaves_no_half(
    made: dict[str, Any], parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SAVE_SECONDS", 0.0)

    def stop(progress: Progress) -> None:
        if progress.num_sequences == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(parent, tmp_path / "out", progress=stop, **made)

    def remove_half(path: Path, **_: Any) -> None:
        if path.exists():
            for part in path.glob("tokens/*"):
                part.unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", remove_half)
        with pytest.raises(KeyboardInterrupt):
            replay(parent, tmp_path / "out", restart=True, **made)
    summary = replay(parent, tmp_path / "out", **made)
    assert (summary.num_tokens, summary.num_resumed_tokens) == (7, 0)
    assert Trace(tmp_path / "out").num_rows("tokens") == 7


def test_rows_about_a_run_are_written_under_the_new_run(made: dict[str, Any], parent: Path, tmp_path: Path) -> None:
    replay(parent, tmp_path / "out", **made)
    out = Trace(tmp_path / "out")
    parents = {row["run_id"]: json.loads(row["options"])["parent_run_id"] for row in out.read("runs").to_pylist()}
    assert sorted(parents.values()) == ["one", "two"]
    steps = out.read("steps").to_pylist()
    assert sorted((parents[row["run_id"]], row["num_scheduled_tokens"]) for row in steps) == [
        *(("one", 3), ("one", 3), ("two", 1)),
    ]
    events = out.read("events").to_pylist()
    assert sorted((parents[row["run_id"]], row["kind"], row["time_ns"]) for row in events) == [
        *(("one", "paused", 3), ("one", "paused", 3), ("two", "paused", 1)),
    ]
    # Each batch counts its steps from 0; in the trace they are told apart.
    assert len({(row["run_id"], row["step_id"]) for row in steps}) == 3
