"""Where settings come from: options, environment, a file, an engine's own configuration. All are checked alike.

Strongest first: an option (or an argument of `recording`), the environment, the file, the engine's
`additional_config={"tracekit": {...}}`. Settings are told apart from defaults: what a stronger source does not
give is left to the weaker ones.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tracekit.errors import ConfigError, nearest
from tracekit.record.config import RecordConfig, check_range

SWITCH = "TRACEKIT_RECORD"
PREFIX = f"{SWITCH}_"
FILE_VARIABLE = f"{PREFIX}CONFIG"

# Name to type, such as 'int' or 'str | None'.
KINDS: Mapping[str, str] = {field.name: str(field.type) for field in fields(RecordConfig)}

# What may follow TRACEKIT_RECORD_; the trace is TRACEKIT_RECORD itself.
_VARIABLES = (KINDS.keys() - {"trace"}) | {"config"}

_EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def from_options(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Checks settings that Python gave, those of None left out.

    Args:
        given: values by name.
        source: what to call their place in messages.

    Raises:
        ConfigError: a setting that is not known, or whose value does not fit.
    """
    settings = {}
    for name, value in given.items():
        if name not in KINDS:
            raise ConfigError(f"{source}: no such recorder setting '{name}'{nearest(name, KINDS)}")
        if value is not None:
            settings[name] = _checked(name, value, source)
    return settings


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Returns the settings of the environment, those of a file that it names among them.

    Raises:
        ConfigError: a setting that is not known, or whose value does not fit; the file cannot be read.
    """
    settings: dict[str, Any] = {}
    file = environ.get(FILE_VARIABLE)
    if file:
        settings |= from_file(file)
    if environ.get(SWITCH):
        settings["trace"] = environ[SWITCH]
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable == FILE_VARIABLE:
            continue
        name = variable.removeprefix(PREFIX).lower()
        source = f"environment variable {variable}"
        if name not in _VARIABLES:
            known = (f"{PREFIX}{known.upper()}" for known in _VARIABLES)
            raise ConfigError(f"{source}: no such recorder setting{nearest(variable, known)}")
        settings[name] = _checked(name, _parsed(name, text, source), source)
    return settings


def from_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the settings of a TOML file, one `name = value` a line.

    Raises:
        ConfigError: it cannot be read, or holds a setting that is not known or does not fit.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: the recorder's settings cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    if "session" in content:
        raise ConfigError(f"{path}: 'session' names one recording, and is no setting for a file; leave it out")
    return from_options(content, str(path))


def to_environment(given: Mapping[str, Any]) -> dict[str, str]:
    """Returns the environment variables that hand settings to a child process."""
    variables = {PREFIX + name.upper(): str(value) for name, value in given.items() if value is not None}
    trace = variables.pop(f"{PREFIX}TRACE", None)
    return variables if trace is None else {SWITCH: trace} | variables


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns an environment that says nothing of the recorder."""
    return {name: value for name, value in environ.items() if name != SWITCH and not name.startswith(PREFIX)}


def _checked(name: str, value: Any, source: str) -> Any:
    kind = KINDS[name].removesuffix(" | None")
    if kind == "str" and isinstance(value, os.PathLike):
        value = os.fspath(value)
    fits = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, int | float) and not isinstance(value, bool),
        "str": isinstance(value, str),
    }
    if not fits[kind]:
        raise _unfit(name, value, source)
    if kind == "float":
        value = float(value)
    check_range(name, value, source)
    return value


def _parsed(name: str, text: str, source: str) -> Any:
    kind = KINDS[name].removesuffix(" | None")
    try:
        if kind == "bool":
            return _TRUTH[text.lower()]
        return {"int": int, "float": float, "str": str}[kind](text)
    except (ValueError, KeyError):
        raise _unfit(name, text, source) from None


def _unfit(name: str, value: Any, source: str) -> ConfigError:
    expected = _EXPECTED[KINDS[name].removesuffix(" | None")]
    return ConfigError(f"{source}: '{name}' is {value!r}, but {expected} was expected")
