"""`tracekit.set_weight_version`: what reaches the trackers of this process, and what goes through an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import tracekit
from tracekit.record import RecordConfig
from tracekit.record.capture import Weights
from tracekit.record.engines.weights import tracker_of
from tracekit.record.registry import activate, deactivate
from tracekit.store import create_trace


class _Model(nn.Module):
    def load_weights(self, weights: Any) -> set[str]:
        return {name for name, _ in weights}


class _Engine:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def collective_rpc(self, method: str, timeout: float | None = None, args: tuple[Any, ...] = ()) -> list[bool]:
        self.calls.append((method, timeout, args))
        return [True, True]


class _AsyncEngine(_Engine):
    async def collective_rpc(self, method: str, timeout: float | None = None, args: tuple[Any, ...] = ()) -> list[bool]:  # type: ignore[override]
        return super().collective_rpc(method, timeout, args)


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[None]:
    create_trace(tmp_path / "trace", "record")
    activate(RecordConfig(trace=str(tmp_path / "trace"), session="s"))
    yield
    deactivate()


@pytest.mark.usefixtures("recorded")
def test_models_of_this_process_are_named() -> None:
    model = _Model()
    tracker = tracker_of(model, "s")
    assert tracekit.set_weight_version(7) == 1
    assert tracker.weights == Weights(0, "7", False)
    tracekit.set_weight_version("next", partial=True)
    assert tracker.weights == Weights(0, "next", True)
    tracekit.set_weight_version("next", changed=True)
    tracekit.set_weight_version("next", partial=False)
    update = tracker.forward()
    assert update is not None
    assert update.attributes() | {"paths": ["set_weight_version"], "partial": False} == update.attributes()
    assert tracker.weights == Weights(1, "next", False)
    # The name outlives a recording, and the count begins anew.
    assert tracker_of(model, "another").weights == Weights(0, "next", False)


@pytest.mark.usefixtures("recorded")
def test_loads_of_known_models_are_seen_and_others_are_not() -> None:
    model, other = _Model(), _Model()
    tracker = tracker_of(model, "s")
    given = iter([("a", 1), ("b", 2)])
    assert model.load_weights(given) == {"a", "b"}
    assert other.load_weights([("c", 1)]) == {"c"}
    assert model.load_weights(weights=[("d", 1)]) == {"d"}
    update = tracker.forward()
    assert update is not None
    assert (update.names, update.num_calls) == ({"a", "b", "d"}, 2)


@pytest.mark.usefixtures("recorded")
def test_an_engine_hands_it_to_its_workers() -> None:
    engine = _Engine()
    assert tracekit.set_weight_version("x", engine, changed=True) == 2
    assert engine.calls == [("tracekit_set_weight_version", None, ("x", True, None))]
    later = _AsyncEngine()
    assert asyncio.run(_await(later)) == 2
    assert later.calls == [("tracekit_set_weight_version", None, ("x", False, True))]


async def _await(engine: _AsyncEngine) -> int:
    named: int = await tracekit.set_weight_version("x", engine, partial=True)
    return named


def test_it_does_nothing_while_nothing_is_recorded() -> None:
    engine, later = _Engine(), _AsyncEngine()
    assert tracekit.set_weight_version("x") == tracekit.set_weight_version("x", engine) == 0
    assert asyncio.run(_await(later)) == 0
    assert engine.calls == later.calls == []


@pytest.mark.usefixtures("recorded")
def test_a_process_without_weights_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert tracekit.set_weight_version("lost") == 0
    assert "give the engine too" in caplog.text
