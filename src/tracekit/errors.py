"""The tree of errors a caller may catch, each with the exit code that the command line gives it.

TracekitError
├── InputError              2  something handed in cannot be used
│   ├── NotATraceError         the path holds no trace
│   ├── TraceFormatError       a trace of a version, or with content, that this release cannot read
│   ├── OutputExistsError      the place to write to is taken
│   ├── ModelError             the model is missing or does not fit the trace
│   ├── ConfigError            an unknown or impossible setting
│   └── QueryError             SQL that DuckDB refuses, or that does more than read
├── AlignmentError          2  two traces whose rows have no proven counterpart
├── BackendUnavailableError 3  a backend whose software is not there
└── RecorderError           1  the recorder failed (raised only where `strict` asks for it)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AlignmentError",
    "BackendUnavailableError",
    "ConfigError",
    "InputError",
    "ModelError",
    "NotATraceError",
    "OutputExistsError",
    "QueryError",
    "RecorderError",
    "TraceFormatError",
    "TracekitError",
    "nearest",
]


class TracekitError(Exception):
    """Base of all errors that tracekit raises on purpose.

    A message says what, where, what was found, what was expected, and what to do, in one line.

    Attributes:
        exit_code: what the command line exits with.
    """

    exit_code = 1


class InputError(TracekitError):
    """Something handed in cannot be used."""

    exit_code = 2


class NotATraceError(InputError):
    """The path holds no trace."""


class TraceFormatError(InputError):
    """A trace of a version, or with content, that this release cannot read."""


class OutputExistsError(InputError):
    """The place to write to is taken."""


class ModelError(InputError):
    """A model that is missing, cannot be loaded, or does not fit the trace."""


class ConfigError(InputError):
    """An unknown or impossible setting."""


class QueryError(InputError):
    """SQL that DuckDB refuses, or a statement that does more than read."""


class AlignmentError(TracekitError):
    """Two traces whose rows have no proven counterpart."""

    exit_code = 2


class BackendUnavailableError(TracekitError):
    """A backend whose software is not installed or does not answer."""

    exit_code = 3


class RecorderError(TracekitError):
    """The recorder failed; raised only where `strict` asks for it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ' (did you mean X?)' for the closest known name, or the list of all when none is close."""
    candidates = sorted(known)
    close = difflib.get_close_matches(name, candidates, n=1)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (known: {', '.join(candidates)})" if candidates else ""
