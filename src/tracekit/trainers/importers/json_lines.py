"""Reads JSON objects line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracekit.errors import InputError


def objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each line's object, and where it stands.

    Raises:
        InputError: a line is no JSON object, or the file is no text.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise InputError(
                        f"{where}: no JSON ({error}); is the file cut off, or of another format?"
                    ) from None
                if not isinstance(value, dict):
                    raise InputError(f"{where}: {type(value).__name__} found, expected a JSON object")
                yield where, value
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text file ({error.reason}), expected JSON lines") from error
