"""Checkpoints and adapters by what they are called."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tracekit.errors import ConfigError

BASE = "base"


def named_checkpoints(given: Iterable[str]) -> dict[str, Path]:
    """Returns folders by label, from texts like 'LABEL=PATH'.

    Raises:
        ConfigError: a text of another kind, or a label given twice.
    """
    return {label: Path(path) for label, path in _parted("weights", "LABEL", given)}


def named_adapters(given: Iterable[str]) -> dict[str, Path | None]:
    """Returns folders of LoRA adapters by name, from texts like 'NAME=PATH'; None from 'NAME=base', the base model.

    Raises:
        ConfigError: a text of another kind, or a name given twice.
    """
    return {name: None if path == BASE else Path(path) for name, path in _parted("lora", "NAME", given)}


def _parted(option: str, label: str, given: Iterable[str]) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"{option} '{text}' is not of the kind {label}=PATH")
        if name in found:
            raise ConfigError(f"{option} '{name}' is given twice")
        found[name] = path
    return list(found.items())
