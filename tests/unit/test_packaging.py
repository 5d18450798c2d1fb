"""The wheel: what is in it, and that it works without the repository around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

USE = """
import json, pathlib, sys
import tracekit.schema
from tracekit.store import Trace, TraceWriter, create_trace
create_trace(sys.argv[1], "record")
with TraceWriter(sys.argv[1], run_id="r") as writer:
    writer.append("events", {"time_ns": [1, 2], "kind": "paused"})
print(json.dumps({
    "package": tracekit.__file__,
    "definitions": str(tracekit.schema.definitions_dir()),
    "tables": tracekit.schema.table_names(),
    "rows": Trace(sys.argv[1]).num_rows("events"),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built by the build backend itself, which needs no network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(folder)]
    name = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()[-1]
    return folder / name


def test_schemas_are_in_the_wheel_byte_for_byte(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = [name for name in content.namelist() if name.startswith("tracekit/schemas/")]
        found = {name.removeprefix("tracekit/schemas/"): content.read(name) for name in names}
    expected = {str(path.relative_to(ROOT / "schemas")): path.read_bytes() for path in (ROOT / "schemas").rglob("*.*")}
    assert found == expected
    assert "v1/tokens.json" in found


def test_every_module_and_sql_file_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
    source = ROOT / "src"
    needed = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.is_file() and (path.suffix in (".py", ".sql") or path.name == "py.typed")
    }
    assert needed <= names
    outside = {name for name in names if not name.startswith("tracekit/") and ".dist-info/" not in name}
    assert outside == set()


def test_unpacked_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as content:
        content.extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", USE, str(tmp_path / "a.trace")]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert Path(found["package"]).is_relative_to(site)
    assert Path(found["definitions"]) == site / "tracekit" / "schemas"
    assert found["tables"] == json.loads((ROOT / "schemas" / "v1" / "format.json").read_text())["tables"]
    assert found["rows"] == 2


def test_demo_is_in_the_wheel_and_small(wheel: Path) -> None:
    source = ROOT / "src" / "tracekit" / "demo"
    expected = {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*.*") if path.is_file()}
    expected = {name: data for name, data in expected.items() if not name.endswith(".pyc")}
    with zipfile.ZipFile(wheel) as content:
        members = [member for member in content.infolist() if member.filename.startswith("tracekit/demo/")]
        found = {member.filename.removeprefix("tracekit/demo/"): content.read(member) for member in members}
    assert found == expected
    assert {"traces/rollout.trace/manifest.json", "traces/fp32.trace/manifest.json"} <= set(found)
    assert sum(member.compress_size for member in members) < 1_000_000
    assert sum(member.file_size for member in members) < 1_000_000


def test_demo_runs_with_the_core_alone(wheel: Path, tmp_path: Path) -> None:
    """In an interpreter that sees the wheel and its core dependencies, and no other package."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as content:
        content.extractall(site)
    for name in _core_packages():
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top != ".." and not (site / top).exists():
                (site / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))))
    # -I and -S: neither variables nor this interpreter's own packages.
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); from tracekit.cli.main import main; sys.exit(main(['demo']))"
    )
    started = [path.stat().st_mtime_ns for path in sorted(site.joinpath("tracekit/demo/traces").rglob("*"))]
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert "20 requests aligned by request id, 754 pairs" in run.stdout
    assert run.stdout.count("\n\n-- ") == 3
    shown = run.stdout.splitlines()[-1]
    assert shown.startswith(f"  tracekit shell {site}/tracekit/demo/traces/rollout.trace ")
    assert [path.stat().st_mtime_ns for path in sorted(site.joinpath("tracekit/demo/traces").rglob("*"))] == started
    absent = "import torch"
    code = f"import sys; sys.path.insert(0, {str(site)!r}); {absent}"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True).returncode == 1


def _core_packages() -> set[str]:
    """The core dependencies, and what they depend on."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    left = [Requirement(text) for text in project["dependencies"]]
    while left:
        requirement = left.pop()
        if requirement.name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(requirement.name)
        left += [Requirement(text) for text in metadata.requires(requirement.name) or []]
    return found


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        (fields_file,) = (name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        (entry_points,) = (name for name in content.namelist() if name.endswith("entry_points.txt"))
        fields = Parser().parsestr(content.read(fields_file).decode())
        points = content.read(entry_points).decode()
    needs = fields.get_all("Requires-Dist") or []
    core = {need.split(">")[0] for need in needs if "extra ==" not in need}
    assert core == {"pyarrow", "duckdb", "zstandard", "click", "rich", "numpy"}
    assert not any(need.startswith("vllm") for need in needs), "tracekit attaches to the vLLM that is there"
    assert fields["License-Expression"] == "Apache-2.0"
    assert "tracekit = tracekit.cli.main:main" in points
    assert "[vllm.general_plugins]" in points


def test_pins_fit_the_ranges_and_name_each_version_once() -> None:
    from packaging.requirements import Requirement

    lines = [line for line in (ROOT / "tools" / "pins.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = {pin.name: next(iter(pin.specifier)).version for pin in map(Requirement, lines)}
    assert len(pins) == len(lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [need for extra in project["optional-dependencies"].values() for need in extra]
    for requirement in map(Requirement, project["dependencies"] + extras):
        assert requirement.specifier.contains(pins[requirement.name]), requirement
