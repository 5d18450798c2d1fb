"""The options of every command that may compute more than memory holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tracekit.limits import Limits

F = TypeVar("F", bound=Callable[..., Any])


def limit_options(command: F) -> F:
    """Adds --memory-limit, --threads and --temp-dir, which `limits_of` takes back out of the command's arguments."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def limits_of(options: dict[str, Any]) -> Limits:
    """Returns what the user allows.

    Raises:
        ConfigError: a value that cannot be used.
    """
    return Limits(**{name: options[name] for name in Limits.__dataclass_fields__})


_OPTIONS = (
    click.option(
        "--memory-limit", metavar="SIZE", help="Most memory to use, like 4GB; what does not fit goes to disk."
    ),
    click.option("--threads", type=int, help="Threads to compute with."),
    click.option(
        "--temp-dir", type=click.Path(path_type=Path), help="Existing folder for what does not fit in memory."
    ),
)
