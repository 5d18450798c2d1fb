"""Documentation that must not drift from what it describes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "schemas").rglob("*.md")]
    if path.is_file()
)


def test_generated_parts_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "gen_docs.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_specification_states_every_column_as_the_definitions_do() -> None:
    sections = re.split(r"^### `(\w+)`$", (ROOT / "schemas" / "README.md").read_text(encoding="utf-8"), flags=re.M)
    stated = dict(zip(sections[1::2], sections[2::2], strict=True))
    tables = json.loads((ROOT / "schemas" / "v1" / "format.json").read_text())["tables"]
    assert list(stated) == tables
    for table in tables:
        columns = json.loads((ROOT / "schemas" / "v1" / f"{table}.json").read_text(encoding="utf-8"))["columns"]
        rows = [line for line in stated[table].splitlines() if line.startswith("| `")]
        assert len(rows) == len(columns)
        for row, column in zip(rows, columns, strict=True):
            cells = [cell.strip() for cell in row.strip("|").split(" | ")]
            assert cells[0] == f"`{column['name']}`"
            assert cells[1].split()[0].rstrip(",") == column["type"]
            assert (", required" in cells[1]) == (not column["nullable"])
            assert cells[2] == column["since"]
            assert column["meaning"] in cells[3]
            assert all(f"`{value}`: {meaning}" in cells[3] for value, meaning in column.get("values", {}).items())


def test_every_command_is_in_the_command_reference() -> None:
    from tracekit.cli.main import COMMANDS

    headings = re.findall(r"^## `tracekit (\w+)`$", (ROOT / "docs" / "commands.md").read_text(), flags=re.M)
    assert headings == list(COMMANDS)


def test_the_page_on_the_shell_names_every_command_and_format() -> None:
    from tracekit.report.formats.base import format_names
    from tracekit.shell.commands import COMMANDS

    page = (ROOT / "docs" / "shell.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\| `(\.\w+)", page, flags=re.M)
    assert commands == [name for name in COMMANDS if name != ".exit"]
    formats = re.findall(r"^\| `(\w+)` \|", page, flags=re.M)
    assert formats == format_names()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_make_help_explains_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.M)
    explained = re.findall(r"^([\w-]+):.* ## \S", makefile, flags=re.M)
    assert sorted(explained) == sorted(phony.split())
    assert {"demo", "test", "check", "bench", "engine", "model", "docs", "clean"} <= set(explained)
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {target} " in shown for target in explained)


def test_architecture_names_every_folder_of_the_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "tracekit"
    names = [path.name for path in package.iterdir() if path.suffix == ".py" and path.name != "__init__.py"]
    names += [f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert [name for name in names if f"`{name}`" not in page] == []
