"""The notebook of docs/: it runs on the traces that come with the package, and gives the outputs it was saved with."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tracekit import Trace, demo

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module")
def cells() -> list[dict[str, Any]]:
    content: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    return list(content["cells"])


def outputs(cells: list[dict[str, Any]], kind: str) -> list[str]:
    found = [output.get("data", {}).get(kind) for cell in cells for output in cell.get("outputs", [])]
    return ["".join(lines) for lines in found if lines]


def test_it_runs_and_gives_what_it_was_saved_with() -> None:
    command = [sys.executable, str(ROOT / "tools" / "run_notebook.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_it_is_small_and_names_no_machine(cells: list[dict[str, Any]]) -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 50_000
    assert str(ROOT) not in text
    assert "/demo/traces" not in text
    assert [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"] == list(
        range(1, 1 + sum(cell["cell_type"] == "code" for cell in cells))
    )


def test_its_drawings_count_every_token(cells: list[dict[str, Any]]) -> None:
    spread, by_position = (ElementTree.fromstring(text) for text in outputs(cells, "image/svg+xml"))
    values = [node.text or "" for node in spread.iter("{http://www.w3.org/2000/svg}text")][1:]
    assert sum(int(count) for count in values[1::2]) == 754
    a, b = (
        {(row["request_id"], row["output_index"]): row["logprob"] for row in Trace(path).read("tokens").to_pylist()}
        for path in (demo.ROLLOUT, demo.FP32)
    )
    # Worked out from the tables, without SQL.
    early = [abs(b[key] - a[key]) for key in a if key[1] < 8]
    values = [node.text or "" for node in by_position.iter("{http://www.w3.org/2000/svg}text")][1:]
    assert float(values[1]) == pytest.approx(sum(early) / len(early), abs=5.1e-5)
