"""Requirements on a comparison: how they are read, judged, and told."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from factories import make_request, make_trace
from tracekit.analysis.figures import Figure
from tracekit.analysis.gate import FAIL, NO_DATA, NOISE, PASS, GateConfig, Requirement, judge, no_farther
from tracekit.cli.main import main
from tracekit.errors import ConfigError


def figure(
    name: str = "k3_kl",
    value: float | None = 0.5,
    *,
    basis: str = "processed",
    interval: tuple[float, float] | None = None,
    floor: float | None = None,
    floor_source: str | None = None,
    floor_interval: tuple[float, float] | None = None,
    neutral: float = 0.0,
) -> Figure:
    low, high = interval or (None, None)
    floor_low, floor_high = floor_interval or (None, None)
    return Figure(
        basis,
        name,
        value,
        low,
        high,
        True,
        10,
        5,
        None,
        False,
        "nat",
        True,
        neutral,
        floor=floor,
        floor_source=floor_source,
        floor_low=floor_low,
        floor_high=floor_high,
    )


def outcome(text: str, *figures: Figure) -> tuple[str, bool | None]:
    (verdict,) = judge([Requirement.parse(text)], figures or [figure()])
    return verdict.outcome, verdict.is_settled


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("k3_kl < 1e-3", (None, "k3_kl", "<", 1e-3, False)),
        ("  raw.same_top_p>=0.99 ", ("raw", "same_top_p", ">=", 0.99, False)),
        ("k3_kl <= 2 * floor", (None, "k3_kl", "<=", 2.0, True)),
        ("k3_kl <= floor", (None, "k3_kl", "<=", 1.0, True)),
        ("kl == 0", (None, "kl", "==", 0.0, False)),
    ],
)
def test_parse(text: str, expected: tuple[str | None, str, str, float, bool]) -> None:
    found = Requirement.parse(text)
    assert (found.basis, found.name, found.comparison, found.bound, found.of_floor) == expected


@pytest.mark.parametrize(
    "text", ["k3_kl", "k3_kl < ", "k3_kl < tiny", "k3_kl =< 1", "other.k3_kl < 1", "k3_kl < x * floor"]
)
def test_what_is_no_requirement(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not of the form \[BASIS\.\]METRIC"):
        Requirement.parse(text)


def test_outcomes() -> None:
    assert outcome("k3_kl < 1") == (PASS, None)
    assert outcome("k3_kl < 0.5") == (FAIL, None)
    assert outcome("k3_kl <= 0.5") == (PASS, None)
    assert outcome("k3_kl < 1", figure(value=None)) == (NO_DATA, None)
    assert outcome("k3_kl < 1", figure(interval=(0.4, 0.6))) == (PASS, True)
    assert outcome("k3_kl < 0.55", figure(interval=(0.4, 0.6))) == (PASS, False)
    assert outcome("k3_kl < 0.45", figure(interval=(0.4, 0.6))) == (FAIL, False)


def test_noise_counts_only_where_it_was_measured() -> None:
    assert outcome("k3_kl < 0.1", figure(floor=0.6, floor_source="measured")) == (NOISE, None)
    assert outcome("k3_kl < 0.1", figure(floor=0.4, floor_source="measured")) == (FAIL, None)
    assert outcome("k3_kl < 0.1", figure(floor=0.6, floor_source="model")) == (FAIL, None)


@pytest.mark.parametrize(
    ("value", "interval", "floor", "floor_interval", "expected"),
    [
        (0.5, (0.3, 0.7), 0.2, (0.1, 0.29), FAIL),
        (0.5, (0.3, 0.7), 0.2, (0.1, 0.31), NOISE),
        # Two broken requests of few: resamples without them are like repeats, but no repeat was ever so far off.
        (0.61, (0.1, 2.0), 0.2, (0.1, 0.3), FAIL),
        (0.59, (0.1, 2.0), 0.2, (0.1, 0.3), NOISE),
        # Repeats that are equal bit for bit leave no room.
        (1e-9, (0.0, 2e-9), 0.0, (0.0, 0.0), FAIL),
        (0.5, None, 0.4, (0.1, 0.6), FAIL),
        (0.5, (0.3, 0.7), 0.4, None, FAIL),
    ],
)
def test_noise_where_intervals_meet(
    value: float,
    interval: tuple[float, float] | None,
    floor: float,
    floor_interval: tuple[float, float] | None,
    expected: str,
) -> None:
    measured = {"floor": floor, "floor_source": "measured", "floor_interval": floor_interval}
    assert outcome("k3_kl < 0", figure(value=value, interval=interval, **measured)) == (
        expected,
        None if interval is None else interval[0] >= 0,
    )


def test_noise_around_another_neutral_value() -> None:
    """Of an effective sample size, less is farther; of a signed figure, both sides count."""
    measured = {"floor": 0.9, "floor_source": "measured", "floor_interval": (0.8, 0.95), "neutral": 1.0}
    assert outcome("ess >= 0.99", figure("ess", 0.75, interval=(0.7, 0.81), **measured))[0] == NOISE
    assert outcome("ess >= 0.99", figure("ess", 0.75, interval=(0.7, 0.79), **measured))[0] == FAIL
    signed = {"floor": -0.2, "floor_source": "measured", "floor_interval": (-0.3, -0.1)}
    assert outcome("kl < 0.1", figure("kl", 0.25, interval=(0.2, 0.35), **signed))[0] == NOISE
    assert outcome("kl < 0.1", figure("kl", 0.35, interval=(0.31, 0.4), **signed))[0] == FAIL


def test_a_share_of_requests_is_noise_as_far_as_its_interval_says() -> None:
    """One request of eight diverged, and none of eight: Wilson's intervals, by hand, have values in common."""
    measured = {"floor": 0.0, "floor_source": "measured", "floor_interval": (0.0, 0.3244)}
    share = figure("first_divergence_rate", 0.125, basis="requests", interval=(0.0224, 0.4709), **measured)
    assert outcome("first_divergence_rate < 0.01", share)[0] == NOISE
    many = figure("first_divergence_rate", 0.75, basis="requests", interval=(0.4093, 0.9285), **measured)
    assert outcome("first_divergence_rate < 0.01", many)[0] == FAIL


def test_what_is_required_without_a_requirement() -> None:
    found = no_farther([figure(basis="raw"), figure(value=None), figure("logprob_abs_diff_mean")])
    assert [requirement.text for requirement in found] == [
        "raw.k3_kl <= floor",
        "processed.logprob_abs_diff_mean <= floor",
        "first_divergence_rate <= floor",
    ]


def test_bounds_of_the_floor() -> None:
    assert outcome("k3_kl <= 2 * floor", figure(floor=0.25, floor_source="measured")) == (PASS, None)
    assert outcome("k3_kl < 2 * floor", figure(floor=0.2, floor_source="measured")) == (FAIL, None)
    assert outcome("k3_kl <= 2 * floor") == (NO_DATA, None)


def test_a_name_without_a_basis_is_the_processed_one() -> None:
    both = (figure(basis="raw", value=3.0), figure(value=1.0))
    assert outcome("k3_kl < 2", *both) == (PASS, None)
    assert outcome("raw.k3_kl < 2", *both) == (FAIL, None)


def test_an_unknown_figure_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no figure 'k3kl' \(did you mean 'k3_kl'\?\)"):
        judge([Requirement.parse("k3kl < 1")], [figure()])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("requre = []", r"no key 'requre' \(did you mean 'require'\?\)"),
        ("require = 'kl < 1'", "'require' is 'kl < 1', it must be a list of strings"),
        ("partial = 1", "'partial' is 1, it must be true or false"),
        ("require = [", "is no TOML file"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        GateConfig.read(path)


def test_a_missing_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        GateConfig.read(tmp_path / "none.toml")


@pytest.fixture
def traces(tmp_path: Path) -> tuple[Path, Path]:
    a = make_trace(tmp_path / "a", requests=[make_request(logprob=-1.0)])
    return a, make_trace(tmp_path / "b", requests=[make_request(logprob=-1.25)], role="replay", parent=a)


def test_command(traces: tuple[Path, Path], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    a, b = map(str, traces)
    config = tmp_path / "gate.toml"
    config.write_text('require = ["logprob_abs_diff_max <= 0.25"]\n')
    junit, as_json = tmp_path / "gate.xml", tmp_path / "gate.json"
    outputs = ["--junit", str(junit), "--json", str(as_json)]
    assert main(["gate", a, b, "--config", str(config), *outputs]) == 0
    assert b"All requirements met" in capfdbinary.readouterr().out
    assert json.loads(as_json.read_text())["passed"] is True
    assert main(["gate", a, b, "--config", str(config), "--require", "kl < 0.1", *outputs]) == 1
    assert b"1 requirement of 2 not met" in capfdbinary.readouterr().out
    rows = json.loads(as_json.read_text())["requirements"]
    assert [(row["name"], row["value"], row["verdict"]) for row in rows] == [
        ("logprob_abs_diff_max", 0.25, "pass"),
        ("kl", 0.25, "FAIL"),
    ]
    suite = ElementTree.fromstring(junit.read_bytes())
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["kl < 0.1"]


def test_command_with_nothing_but_a_repeat(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A and B have to differ as A and its repeat do: in the last bits, or not at all."""
    a = make_trace(tmp_path / "a", requests=[make_request(str(i), prompt=[i], logprob=-1.0) for i in range(8)])

    def replay(name: str, logprob: float) -> str:
        requests = [make_request(str(i), prompt=[i], logprob=logprob - i / 1e4) for i in range(8)]
        return str(make_trace(tmp_path / name, requests=requests, role="replay", parent=a, run_id=name))

    null = replay("null", -1.001)
    assert main(["gate", str(a), replay("good", -1.0011), "--null", null]) == 0
    assert b"within noise" in capfdbinary.readouterr().out
    assert main(["gate", str(a), replay("bad", -1.002), "--null", null]) == 1
    text = capfdbinary.readouterr().out
    assert b"2 requirements of 3 not met" in text
    assert text.count(b"FAIL") == 2


def test_command_refuses(traces: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = map(str, traces)
    assert main(["gate", a, b]) == 2
    assert "no requirement; give --require" in capsys.readouterr().err
    assert main(["gate", a, b, "--require", "k3 < 1"]) == 2
    assert "no figure 'k3'" in capsys.readouterr().err
