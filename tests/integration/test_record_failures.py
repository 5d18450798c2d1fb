"""Whatever fails in the recorder, the rollout does not notice, and the trace says what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine import run_engine
from tracekit.cli.main import main
from tracekit.store import Trace

pytestmark = pytest.mark.engine

NUM_TOKENS = 6 * 24


@pytest.fixture(scope="module")
def failures(shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("failures")
    (folder / "traces").mkdir()
    result = run_engine("failures", shallow_model, folder / "tokens.json", folder / "traces", check=False)
    assert result.returncode == 7, result.stderr[-6000:]
    told = json.loads((folder / "tokens.json").read_text())
    assert told["num_scored"] > 1
    return folder / "traces", told


def _dropped(trace: Trace) -> int:
    events = trace.read("events").to_pylist()
    return sum(json.loads(row["attributes"])["num_rows"] for row in events if row["kind"] == "rows_dropped")


def test_tokens_and_exit_code_are_those_of_an_engine_alone(failures: tuple[Path, dict[str, Any]]) -> None:
    tokens = failures[1]["tokens"]
    assert sum(len(ids) for ids in tokens["plain"]) == NUM_TOKENS
    assert len(tokens) == 20
    for scenario, found in tokens.items():
        assert found == tokens["plain"], scenario


def test_recorded_and_missing_tokens_make_up_the_whole(failures: tuple[Path, dict[str, Any]]) -> None:
    folder, tokens = failures[0], failures[1]["tokens"]
    missing = {}
    for scenario in tokens.keys() - {"plain"}:
        trace = Trace(folder / scenario)
        missing[scenario] = _dropped(trace)
        # Prompt positions whose capture fails are told of by the event alone: their number is not known.
        expected = NUM_TOKENS + (0 if scenario.startswith("prompts.") else failures[1]["num_scored"])
        assert trace.num_rows("tokens") + missing[scenario] == expected, scenario
    lossless = {name for name, count in missing.items() if not count}
    # What these do without costs a column, a request's row or prompt positions, and no token.
    assert lossless == {
        "schedule.request_columns",
        "prompts.begin",
        "prompts.captures",
        "front_end._choose",
        "front_end.known_row",
        "describe.model_fingerprint",
    }
    assert missing["small queue"] == NUM_TOKENS + failures[1]["num_scored"]
    assert 0 < missing["slow writer"] < NUM_TOKENS


def test_failures_are_in_the_events(failures: tuple[Path, dict[str, Any]]) -> None:
    folder, tokens = failures[0], failures[1]["tokens"]
    for scenario in tokens.keys() - {"plain", "small queue", "slow writer"}:
        kinds = {row["kind"] for row in Trace(folder / scenario).read("events").to_pylist()}
        assert kinds & {"recorder_error", "recorder_disabled"}, scenario


def test_inspect_shows_losses_first(failures: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    for scenario in ("small queue", "full disk", "runner._hand_over"):
        folder = failures[0] / scenario
        assert main(["inspect", str(folder)]) == 0
        first = capsys.readouterr().out.strip().splitlines()[0]
        assert first.startswith(f"INCOMPLETE: {_dropped(Trace(folder))} rows dropped"), first
