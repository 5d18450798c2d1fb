"""A bisection's way through a setting, and settings that only some others have, against NumPy in float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import bisected
from bisected import made, values
from tracekit.bisect.plan import make_plan
from tracekit.bisect.result import Bisected
from tracekit.bisect.search import search
from tracekit.cli.main import main
from tracekit.errors import ConfigError
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
    return tmp_path_factory.mktemp("replays")


def bisect(a: Path, b: Path, out: Path, vary: str, *through: str, **options: bool) -> Bisected:
    return search(make_plan(a, b, vary=[vary], backend="linear", out=out, through=through, options=options))


def share(delta: Floats, d: Floats) -> float:
    return float(delta @ d / (d @ d))


def test_the_way_leads_in_on_one_side_and_out_on_the_other(a: Path, out: Path, tmp_path: Path) -> None:
    """With z on, x adds nothing more of its own than without; `both` is there with x and y only."""
    own = np.where(np.arange(90) % 9 == 4, 0.125, 0.0)
    b = made(tmp_path / "b.trace", values(x=True) + own, parent=a)
    found = bisect(a, b, out, "x", "z,y", both=True)
    corners = [
        ("baseline", values()),
        ("z=on", values(z=True)),
        ("y=on + z=on", values(z=True, y=True)),
        ("x=on + y=on + z=on", values(x=True, y=True, z=True, both=True)),
        ("x=on + z=on", values(x=True, z=True)),
        ("x=on", values(x=True)),
    ]
    d = values(x=True) + own - values()
    told = [tuple(sorted(one.start.split(" + "))) for one in found.way] + [(found.way[-1].end,)]
    assert told == [tuple(sorted(name.split(" + "))) for name, _ in corners]
    for stage, (_, before), (_, after) in zip(found.way, corners[:-1], corners[1:], strict=True):
        assert stage.share.k2 == pytest.approx(share(after - before, d), abs=1e-12)
        assert stage.size.k2 == pytest.approx(np.mean((after - before) ** 2) / 2)
    parts = [one.share.k2 for one in found.way] + [found.baseline_share.k2, found.residual_share.k2]
    assert sum(parts) == pytest.approx(1)
    assert sum(one.share.k2 for one in found.way) == pytest.approx(found.factors[0].share.k2)
    assert [one.name for one in found.factors] == ["x"]


def test_the_way_is_in_all_reports(a: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = made(tmp_path / "b.trace", values(x=True), parent=a)
    command = ["bisect", str(a), "--against", str(b), "--backend", "linear", "--vary", "x", "--through", "z=on"]
    assert main([*command, "--out", str(out), "--format", "md"]) == 0
    lines = capsys.readouterr().out.splitlines()
    size = f"{np.mean((values(z=True) - values()) ** 2) / 2:.3g}"
    (entered,) = [line for line in lines if line.startswith("| baseline | z=on |")]
    assert entered.split(" | ")[-1] == f"{size} |"
    found = bisect(a, b, out, "x", "z=on")
    assert b"On the way through" in report.to_table(found)
    assert b'"way": [' in report.to_json(found)


def test_without_factors_to_name_those_on_the_way_are_not_searched(a: Path, out: Path, tmp_path: Path) -> None:
    b = made(tmp_path / "b.trace", values(x=True), parent=a)
    plan = make_plan(a, b, backend="linear", out=out, through=["z"])
    assert "z" not in [one.name for one in plan.varied]
    assert [(one.name, one.levels) for one in plan.through] == [("z", ("off", "on"))]


@pytest.mark.parametrize(
    ("vary", "through", "message"),
    [
        ("x,z", "z", "factor 'z' is both varied and on the way; leave one out"),
        ("x", "w", "there is no factor 'w'"),
        ("x", "z=up", "factor 'z' has no level 'up'"),
    ],
)
def test_ways_that_lead_nowhere(a: Path, out: Path, vary: str, through: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(a, a, vary=[vary], backend="linear", out=out, through=[through])


def test_a_setting_that_only_another_one_makes_possible(a: Path, out: Path, tmp_path: Path) -> None:
    """As a prefix cache that the older engine lacks."""
    b = made(tmp_path / "b.trace", values(y=True, needy=True), parent=a)
    found = bisect(a, b, out, "needy,y,x")
    assert (found.target, found.is_settled) == ("needy=on + y=on", True)
    factors = {one.name: one for one in found.factors}
    assert {name: one.verdict for name, one in factors.items()} == {
        "needy": "moves A to B",
        "y": "moves A to B",
        "x": "does not move A to B",
    }
    d = values(y=True, needy=True) - values()
    # The other order cannot be replayed.
    assert factors["y"].share.k2 == pytest.approx(share(values(y=True) - values(), d))
    assert factors["needy"].share.k2 == pytest.approx(share(d - values(y=True) + values(), d))
    assert factors["needy"].removes is None
    assert b"it needs y" in report.to_table(found)


def test_a_setting_that_is_passed_over_is_no_answer(a: Path, out: Path, tmp_path: Path) -> None:
    b = made(tmp_path / "b.trace", values(x=True), parent=a)
    found = bisect(a, b, out, "deaf,x")
    assert [one.verdict for one in found.factors] == ["cannot be run", "moves A to B"]
    assert found.factors[0].detail == "what replays passes over deaf=on: it does not know it, or not beside the rest"
