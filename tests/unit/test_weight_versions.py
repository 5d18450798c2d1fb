"""Weight versions against a simulation of the weights themselves."""

from __future__ import annotations

import hashlib
import random
import threading

import pytest

from tracekit.record.capture import Weights
from tracekit.record.weights import WeightsUpdated, WeightTracker


def _load(tracker: WeightTracker, *names: str, path: str = "load_weights") -> None:
    with tracker.changing(path):
        for name in names:
            tracker.note_name(name)


def _forward(tracker: WeightTracker) -> WeightsUpdated:
    update = tracker.forward()
    assert update is not None
    return update


@pytest.mark.parametrize("seed", range(40))
def test_against_simulated_weights(seed: int) -> None:
    rng = random.Random(seed)
    tracker = WeightTracker()
    weights = dict.fromkeys("abcdef", 0)
    # What each version was seen to hold; what came since the last forward pass, and since the update was opened.
    seen: dict[int, dict[str, int]] = {}
    since: set[str] = set()
    opened: set[str] | None = None
    part_seen = False
    num_versions = num_partial = 0
    for clock in range(1, 600):
        action = rng.random()
        if action < 0.4:
            names = rng.sample("abcdef", rng.randrange(4))
            path = rng.choice(["load_weights", "reload_weights"])
            # As the engine's reload does: a call within a call.
            with tracker.changing(path), tracker.changing("load_weights"):
                for name in names:
                    tracker.note_name(name)
                    weights[name] = clock
            since |= set(names)
            if opened is not None:
                opened |= set(names)
        elif action < 0.5:
            tracker.open()
            opened = set() if opened is None else opened
        elif action < 0.6:
            tracker.close("finish_weight_update")
            if opened is not None and part_seen:
                # The whole is a version of its own, also where the last part was seen already.
                weights["whole"] = clock
                since |= opened
            elif opened is not None and since:
                since |= opened
            opened, part_seen = None, False
        else:
            update = tracker.forward()
            told = tracker.weights
            assert told.partial is (opened is not None)
            assert (update is None) == (not since)
            if update is not None:
                num_versions += 1
                num_partial += told.partial
                assert (update.old_version, update.version) == (num_versions - 1, num_versions)
                assert update.names == since | (opened or set())
                assert update.partial == told.partial
                part_seen = bool(opened)
            assert told.version == num_versions
            since = set()
            # Equal versions are equal weights, and different ones were written to.
            assert seen.setdefault(num_versions, dict(weights)) == weights
    assert num_versions > 40
    assert num_partial > 5


def test_many_calls_are_one_version() -> None:
    tracker = WeightTracker()
    assert tracker.forward() is None
    for i in range(272):
        _load(tracker, f"layer.{i}", path="load_weights" if i % 2 else "reload_weights")
    assert tracker.weights == Weights(0, None, False), "weights count from the forward pass on that runs with them"
    update = _forward(tracker)
    assert (update.old_version, update.version, update.num_calls) == (0, 1, 272)
    assert update.paths == ("reload_weights", "load_weights")
    assert update.names == {f"layer.{i}" for i in range(272)}
    assert tracker.forward() is None
    assert tracker.weights == Weights(1, None, False)


def test_calls_that_bring_nothing_change_nothing() -> None:
    tracker = WeightTracker()
    _load(tracker)
    with pytest.raises(ValueError, match="no such file"), tracker.changing("reload_weights", certain=True):
        raise ValueError("no such file")
    with tracker.muted():
        _load(tracker, "a")
        tracker.changed("sleep")
    assert tracker.forward() is None


def test_a_call_that_fails_half_way_changed_what_it_had_brought() -> None:
    tracker = WeightTracker()

    def load() -> None:
        with tracker.changing("load_weights"):
            tracker.note_name("a")
            raise ValueError("b is too short")

    with pytest.raises(ValueError, match="b is too short"):
        load()
    assert _forward(tracker).names == {"a"}


def test_a_write_whose_tensors_nobody_names() -> None:
    tracker = WeightTracker()
    with tracker.changing("update_weights", certain=True):
        pass
    attributes = _forward(tracker).attributes()
    assert attributes["paths"] == ["update_weights"]
    assert attributes["num_tensors"] is attributes["names_hash"] is None


def test_an_update_seen_in_parts() -> None:
    tracker = WeightTracker("first")
    tracker.open()
    assert tracker.forward() is None
    assert tracker.weights == Weights(0, "first", True)
    _load(tracker, "a", path="update_weights")
    part = _forward(tracker)
    assert (part.version, part.partial, part.names) == (1, True, {"a"})
    _load(tracker, "b", path="update_weights")
    assert tracker.weights == Weights(1, "first", True)
    assert tracker.forward() is not None
    tracker.close("finish_weight_update")
    tracker.label = "second"
    whole = _forward(tracker)
    assert (whole.version, whole.partial, whole.names, whole.label) == (3, False, {"a", "b"}, "second")
    assert whole.paths == ("finish_weight_update",)
    assert tracker.weights == Weights(3, "second", False)


def test_an_update_that_no_forward_pass_saw_is_one_version() -> None:
    tracker = WeightTracker()
    tracker.open()
    _load(tracker, "a", path="update_weights")
    _load(tracker, "b", path="update_weights")
    tracker.close("finish_weight_update")
    update = _forward(tracker)
    assert (update.version, update.partial, update.names, update.paths) == (1, False, {"a", "b"}, ("update_weights",))


def test_a_label_is_no_change() -> None:
    tracker = WeightTracker()
    tracker.label = "named later"
    assert tracker.forward() is None
    assert tracker.weights == Weights(0, "named later", False)


def test_a_forward_pass_beside_a_call_in_another_thread() -> None:
    tracker = WeightTracker()
    written, go_on = threading.Event(), threading.Event()

    def load() -> None:
        with tracker.changing("load_weights"):
            tracker.note_name("a")
            written.set()
            go_on.wait(10)
            tracker.note_name("b")

    thread = threading.Thread(target=load)
    thread.start()
    assert written.wait(10)
    update = _forward(tracker)
    assert (update.version, update.partial, update.names) == (1, True, {"a"})
    go_on.set()
    thread.join()
    rest = _forward(tracker)
    assert (rest.version, rest.partial, rest.names) == (2, False, {"a", "b"})
    assert tracker.weights.partial is False


def test_attributes_of_the_event() -> None:
    tracker = WeightTracker()
    _load(tracker, "lm_head.weight", "a.weight", "a.weight")
    tracker.label = "step 7"
    hashed = hashlib.blake2b(b"a.weight\0lm_head.weight\0", digest_size=16).hexdigest()
    assert _forward(tracker).attributes() == {
        "old_version": 0,
        "version": 1,
        "label": "step 7",
        "partial": False,
        "num_tensors": 2,
        "names_hash": hashed,
        "paths": ["load_weights"],
        "num_calls": 1,
    }
