"""Checkpoints by what their weights are called."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tracekit.errors import ConfigError


def named_checkpoints(given: Iterable[str]) -> dict[str, Path]:
    """Returns folders by label, from texts like 'LABEL=PATH'.

    Raises:
        ConfigError: a text of another kind, or a label given twice.
    """
    found: dict[str, Path] = {}
    for text in given:
        label, equals, path = text.partition("=")
        if not (label and equals and path):
            raise ConfigError(f"weights '{text}' is not of the kind LABEL=PATH")
        if label in found:
            raise ConfigError(f"weights '{label}' is given twice")
        found[label] = Path(path)
    return found
