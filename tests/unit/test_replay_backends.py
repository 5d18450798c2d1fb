"""Finding a backend by name, and its options."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from tracekit.errors import BackendUnavailableError, ConfigError
from tracekit.replay.backends import base
from tracekit.replay.backends.base import backend_names, build_options, load_backend, parsed_options


@dataclass(frozen=True)
class Options:
    dtype: str = "float32"
    head_dtype: str | None = None


def test_hf_is_found() -> None:
    from tracekit.replay.backends.hf import HfBackend

    assert "hf" in backend_names()
    assert load_backend("hf") is HfBackend


def test_an_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no replay backend 'hff' \(did you mean 'hf'\?\)"):
        load_backend("hff")


def test_missing_software_is_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("broken", "software_that_is_not_here.backend:Backend", base.ENTRY_POINTS)
    monkeypatch.setattr(base, "entry_points", lambda group: [point] if group == base.ENTRY_POINTS else [])
    with pytest.raises(BackendUnavailableError, match="'broken' cannot be loaded: 'software_that_is_not_here'") as info:
        load_backend("broken")
    assert info.value.exit_code == 3
    assert "pip install 'tracekit[broken]'" in str(info.value)


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_replay_without_torch_or_transformers_exits_with_3(missing: str, tmp_path: object) -> None:
    code = (
        f"import sys; sys.modules['{missing}'] = None\n"
        "from pathlib import Path\n"
        "from tracekit.store import create_trace\n"
        f"create_trace(Path({str(tmp_path)!r}) / 't', 'record')\n"
        "from tracekit.cli.main import main\n"
        f"sys.exit(main(['replay', {str(tmp_path)!r} + '/t', '-o', {str(tmp_path)!r} + '/o', '--model', 'm']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"replay backend 'hf' cannot be loaded: '{missing}' is not installed" in done.stderr


def test_options_keep_defaults_for_what_is_not_given() -> None:
    assert build_options("x", Options, {"dtype": "float16", "head_dtype": None}) == Options("float16", None)
    assert build_options("x", Options, {}) == Options()


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"backend 'x' has no option 'dtyp' \(did you mean 'dtype'\?\)"):
        build_options("x", Options, {"dtyp": "float16"})


@dataclass(frozen=True)
class TypedOptions:
    text: str = ""
    maybe: str | None = None
    whole: int = 1
    maybe_whole: int | None = None
    real: float = 0.5
    yes: bool = False
    several: tuple[str, ...] = ()


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend with options of all types."""
    backend = type("Typed", (), {"options_type": TypedOptions})
    monkeypatch.setattr(base, "load_backend", lambda _: backend)
    return "typed"


def test_option_texts_become_values_of_the_fields_types(typed: str) -> None:
    texts = ["text=a=b", "maybe=", "whole=-3", "maybe-whole=7", "real=1e-3", "yes=True", "several=x", "several=y"]
    assert parsed_options(typed, texts) == {
        "text": "a=b",
        "maybe": "",
        "whole": -3,
        "maybe_whole": 7,
        "real": 0.001,
        "yes": True,
        "several": ("x", "y"),
    }
    assert parsed_options(typed, ["yes=false"]) == {"yes": False}
    assert parsed_options(typed, []) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text", "option 'text' is not of the kind NAME=VALUE"),
        ("hole=1", r"backend 'typed' has no option 'hole' \(did you mean 'whole'\?\)"),
        ("whole=1.5", "option 'whole=1.5': expected int after the equals sign"),
        ("maybe_whole=many", "option 'maybe_whole=many': expected int after the equals sign"),
        ("real=", "option 'real=': expected float after the equals sign"),
        ("yes=1", "option 'yes=1': expected true or false after the equals sign"),
    ],
)
def test_a_wrong_option_text_is_an_error(typed: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed_options(typed, [text])
