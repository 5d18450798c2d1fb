"""How one value is written: for people, in JSON, and in CSV."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

# A float32 has no more than this many digits of its own; a double is rounded to it too where people read.
_DIGITS = 7
_NULL = "-"


def to_json(value: Any) -> Any:
    """Returns a value that strict JSON can hold.

    Infinities and NaN, which JSON has no numbers for, become the strings "inf", "-inf" and "nan"; whole decimals
    (sums of integers) become integers, bytes base64, times ISO 8601.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, list | tuple):
        return [to_json(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def dump_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(to_json(value), indent=indent, ensure_ascii=False, allow_nan=False)


def to_csv(value: Any) -> Any:
    """Returns what a CSV cell holds: nothing for null, JSON for what has parts."""
    if isinstance(value, list | tuple | Mapping):
        return dump_json(value)
    value = to_json(value)
    return str(value).lower() if isinstance(value, bool) else value


def to_text(value: Any) -> str:
    """Returns what people read: '-' for null, floats with seven digits, lists in brackets."""
    if value is None:
        return _NULL
    if isinstance(value, float):
        return f"{value:.{_DIGITS}g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(to_text(entry) for entry in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {to_text(entry)}" for key, entry in value.items()) + "}"
    return printable(str(to_csv(value)))


def printable(text: str) -> str:
    """Escapes control characters: text of a trace must neither break lines nor steer a terminal."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def plural(num: int, noun: str) -> str:
    """Returns '1 pair' or '2 pairs', with thousands separated."""
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"
