"""A bisection over replays whose scores are known sums, against NumPy in float64."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import bisected
from bisected import made, values
from tracekit.bisect.plan import make_plan
from tracekit.bisect.result import Bisected, Step
from tracekit.bisect.search import search
from tracekit.bisect.settings import Setting
from tracekit.cli.main import main
from tracekit.replay import Progress
from tracekit.report import bisection as report

Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module", autouse=True)
def _announced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from bisected.announced(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("a") / "a.trace", values())


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where replays of `a` go, so that the tests of this module share them."""
    return tmp_path_factory.mktemp("replays")


class Diary:
    """Notes what a bisection tells."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, bool]] = []
        self.ended: list[tuple[str, float | None]] = []

    def begins(self, label: str, *, is_there: bool) -> Callable[[Progress], None] | None:
        self.begun.append((label, is_there))
        return None

    def ends(self, step: Step, left: float | None) -> None:
        self.ended.append((step.label, left))


def bisect(
    a: Path, b: Path, out: Path, vary: str = "x,y,z", *, tries_all: bool = False, watcher: Diary | None = None
) -> Bisected:
    return search(make_plan(a, b, vary=[vary], backend="linear", out=out), watcher, tries_all=tries_all)


def share(delta: Floats, d: Floats) -> float:
    return float(delta @ d / (d @ d))


def labels(found: Bisected) -> list[str]:
    return [step.label for step in found.steps]


def test_one_factor_settles_it_and_the_rest_is_not_tried(a: Path, out: Path, tmp_path: Path) -> None:
    b = made(tmp_path / "b.trace", values(y=True), parent=a)
    diary = Diary()
    found = bisect(a, b, out, watcher=diary)
    assert (found.target, found.is_settled, labels(found)) == ("y=on", True, ["baseline", "x=on", "y=on"])
    assert [one.verdict for one in found.factors] == ["does not move A to B", "moves A to B", "not tried"]
    y = found.factors[1]
    assert (y.share.k2, y.share.k3, y.share.abs) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert (y.removes, y.interaction.k2, found.residual_share.k2, found.baseline_share.k2) == (1, 0, 0, 0)
    d = values(y=True) - values()
    assert found.difference.k2 == pytest.approx(np.mean(d**2) / 2)
    assert found.difference.k3 == pytest.approx(np.mean(np.exp(d) - 1 - d))
    assert found.difference.abs == pytest.approx(np.mean(np.abs(d)))
    assert (found.num_requests, found.num_tokens, found.num_left_out) == (10, 90, 0)
    left_by_x = np.sum((values(y=True) - values(x=True)) ** 2) / np.sum(d**2)
    assert found.factors[0].removes == pytest.approx(1 - left_by_x)
    assert diary.ended == [("baseline", pytest.approx(1)), ("x=on", pytest.approx(left_by_x)), ("y=on", 0)]
    assert found.reason == (
        "y=on alone takes A to B: 0.0% of the difference is left, no more than a hundredth of the difference"
    )


def test_replays_that_are_there_are_used_again(a: Path, tmp_path: Path) -> None:
    b = made(tmp_path / "b.trace", values(x=True), parent=a)
    first, second = Diary(), Diary()
    bisect(a, b, tmp_path / "out", "x,y", watcher=first)
    assert first.begun == [("baseline", False), ("x=on", False)]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    found = bisect(a, b, tmp_path / "out", "x,y", tries_all=True, watcher=second)
    assert second.begun == [("baseline", True), ("x=on", True), ("y=on", False)]
    assert [step.is_reused for step in found.steps] == [True, True, False]
    assert all(path.stat().st_mtime_ns == before for path, before in written.items() if path.suffix == ".parquet")
    # Another selection of requests is another replay.
    other = make_plan(a, b, vary=["x"], backend="linear", out=tmp_path / "out", limit=4).replays
    assert not other.is_there(Setting())
    assert other.path(Setting()).parent == tmp_path / "out"


def test_two_factors_that_interact(a: Path, out: Path, tmp_path: Path) -> None:
    """The option `both` is that of all replays: it does something where x and y are on."""
    b = made(tmp_path / "b.trace", values(x=True, y=True, both=True), parent=a)
    plan = make_plan(a, b, vary=["y,x"], backend="linear", out=out, options={"both": True})
    found = search(plan)
    assert (found.target, found.is_settled) == ("y=on + x=on", True)
    nothing, x, y, xy = values(), values(x=True), values(y=True), values(x=True, y=True, both=True)
    d = xy - nothing
    shares = {one.name: one for one in found.factors}
    left = {"x": np.sum((xy - x) ** 2), "y": np.sum((xy - y) ** 2)}
    first, second = sorted(left, key=lambda name: left[name])
    alone, together = {"x": x, "y": y}[first], {"x": x, "y": y}[second]
    assert shares[first].forward.k2 == pytest.approx(share(alone - nothing, d))
    assert shares[second].forward.k2 == pytest.approx(share(xy - alone, d))
    assert shares[second].reverse.k2 == pytest.approx(share(together - nothing, d))
    assert shares[first].reverse.k2 == pytest.approx(share(xy - together, d))
    for one in (shares["x"], shares["y"]):
        assert one.share.k2 == pytest.approx((one.forward.k2 + one.reverse.k2) / 2)
        assert one.interaction.k2 == pytest.approx(one.forward.k2 - one.reverse.k2)
    assert abs(shares["x"].interaction.k2) > 0.01
    for name in ("k2", "k3", "abs"):
        parts = [one.share for one in found.factors] + [found.baseline_share, found.residual_share]
        assert sum(getattr(part, name) for part in parts) == pytest.approx(1)


def test_factors_that_do_nothing_alone_are_found_together(a: Path, out: Path, tmp_path: Path) -> None:
    b = made(tmp_path / "b.trace", values(x=True, y=True, both=True, alone=False), parent=a)
    plan = make_plan(a, b, vary=["x,z,y"], backend="linear", out=out, options={"both": True, "alone": False})
    found = search(plan)
    assert (found.target, found.is_settled) == ("x=on + y=on", True)
    shares = {one.name: one for one in found.factors}
    assert [shares[name].removes for name in ("x", "y")] == [0, 0]
    assert shares["x"].share.k2 == shares["y"].share.k2 == pytest.approx(0.5)
    # Whichever of them changes last does it all.
    assert abs(shares["x"].interaction.k2) == abs(shares["y"].interaction.k2) == pytest.approx(1)
    assert shares["z"].verdict == "does not move A to B"


def test_what_stands_in_one_request_is_found_where_it_reaches_b(a: Path, out: Path, tmp_path: Path) -> None:
    """Among ten requests one is no more than chance, unless nothing is left between the traces with it."""
    b_values = values(x=True, neighbour=True)
    b = made(tmp_path / "b.trace", b_values, parent=a)
    found = bisect(a, b, out, vary="x,neighbour,z")
    assert (found.target, found.is_settled) == ("x=on + neighbour=on", True)
    factors = {one.name: one for one in found.factors}
    d = b_values - values()
    assert factors["neighbour"].verdict == "moves A to B"
    assert factors["neighbour"].share.k2 == pytest.approx(share(b_values - values(x=True), d), rel=1e-6)
    assert factors["z"].verdict == "does not move A to B"


def test_what_the_baseline_does_not_give_back_and_what_is_left(out: Path, tmp_path: Path) -> None:
    """A is an engine's that rounds otherwise, and B has something of its own."""
    noise = (np.arange(90) * 29 % 7 - 3) / 256
    own = np.where(np.arange(90) % 9 == 4, 0.125, 0.0)
    a = made(tmp_path / "a.trace", values() + noise)
    b = made(tmp_path / "b.trace", values(x=True) + own, parent=a)
    found = bisect(a, b, out, "x")
    d = values(x=True) + own - values() - noise
    assert found.noise.k2 == pytest.approx(np.mean(noise**2) / 2)
    assert found.noise_source == "baseline"
    assert found.target == "x=on"
    assert found.baseline_share.k2 == pytest.approx(share(-noise, d))
    assert found.factors[0].share.k2 == pytest.approx(share(values(x=True) - values(), d))
    assert found.residual_share.k2 == pytest.approx(share(own, d))


def test_repeats_measure_the_noise(a: Path, out: Path, tmp_path: Path) -> None:
    """What is left is no more than repeats differ: that settles it, where without them it would not."""
    noise = (np.arange(90) * 29 % 7 - 3) / 64
    b = made(tmp_path / "b.trace", values(x=True) + noise, parent=a)
    repeats = [made(tmp_path / name, values() + factor * noise) for name, factor in (("one", 0.5), ("two", 1.2))]
    assert not bisect(a, b, out, "x").is_settled
    found = search(make_plan(a, b, vary=["x"], backend="linear", out=out, nulls=repeats))
    assert (found.is_settled, found.noise_source) == (True, "null")
    assert found.noise.k2 == pytest.approx(np.mean((1.2 * noise) ** 2) / 2, rel=1e-6)
    assert found.reason.endswith("of the difference is left, no more than the noise")


def test_traces_that_do_not_differ_need_no_replay(a: Path, out: Path, tmp_path: Path) -> None:
    found = bisect(a, made(tmp_path / "b.trace", values(), parent=a), out)
    assert (found.steps, found.is_settled, found.difference.k2) == ((), True, 0)
    assert found.reason == "A and B do not differ in any token, so nothing was replayed"
    assert {one.verdict for one in found.factors} == {"not tried"}
    assert b"nothing was replayed" in report.to_table(found)


def test_a_baseline_that_is_b(out: Path, tmp_path: Path) -> None:
    """What differs is A's own."""
    a = made(tmp_path / "a.trace", values() + 0.25)
    found = bisect(a, made(tmp_path / "b.trace", values(), parent=a), out)
    assert (found.target, found.is_settled, labels(found)) == ("baseline", True, ["baseline"])
    assert found.baseline_share.k2 == pytest.approx(1)
    assert "the baseline's replay reaches B" in found.reason
    # Without a repeat of A, its own difference cannot be told from noise.
    assert "But the baseline's replay differs from A by 100% of the difference" in found.reason


def test_a_setting_that_cannot_be_replayed_is_told_and_left_out(a: Path, out: Path, tmp_path: Path) -> None:
    b = made(tmp_path / "b.trace", values(x=True), parent=a)
    found = bisect(a, b, out, "broken,x")
    broken, x = found.factors
    assert (broken.verdict, broken.detail, x.verdict) == ("cannot be run", "it is broken", "moves A to B")
    assert found.steps[1].reason == "it is broken"
    for write in (report.to_table, report.to_md):
        assert b"cannot be run: it is broken" in write(found)


def test_the_command_shows_its_plan_its_answer_and_json(
    a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    b = made(tmp_path / "b.trace", values(x=True, y=True), parent=a)
    command = ["bisect", str(a), "--against", str(b), "--backend", "linear", "--vary", "x,y"]
    command += ["--out", str(tmp_path / "out")]
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("to be made") == 3
    assert "at most 3 replays of several changes follow" in shown.out
    assert not (tmp_path / "out").exists()

    assert main([*command, "--format", "json"]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert (document["target"], document["is_settled"], document["basis"]) == ("x=on + y=on", True, "raw")
    assert [one["name"] for one in document["factors"]] == ["x", "y"]
    parts = [one["share"] for one in document["factors"]] + [document["baseline_share"], document["residual_share"]]
    assert sum(part["k2"] for part in parts) == pytest.approx(1)
    assert document["factors"][0]["interaction"]["k2"] == pytest.approx(0, abs=1e-12)
    told = [line.split(":")[0] for line in shown.err.splitlines()]
    assert told == ["baseline", "x=on", "y=on", "x=on + y=on"]

    assert main([*command, "--format", "json", "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert [one["is_there"] for one in planned["replays"]] == [True] * 3
    assert main([*command, "--format", "md", "--output", str(tmp_path / "answer.md")]) == 0
    page = (tmp_path / "answer.md").read_text()
    assert "| x | off | on |" in page
    assert "x=on + y=on together take A to B" in page
    assert "was there" in capsys.readouterr().err
