"""The SQL that an explanation asks, beside the evidence of causes."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources

from tracekit.analysis import library
from tracekit.analysis.explain.base import Cause

# What the rest of this package names in its own statements.
_NAMES = "explained fork_causes excluded_tokens"


def query(name: str) -> str:
    """Returns the text of one .sql file."""
    return resources.files(__package__).joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")


def all_queries(causes: Iterable[Cause]) -> str | None:
    """Returns the text of all that is asked where these causes are tried; None where one of them is from elsewhere."""
    package = f"{__package__}.causes"
    if any(type(cause).__module__.rpartition(".")[0] != package for cause in causes):
        return None
    folders = (resources.files(__package__) / "sql", resources.files(package))
    texts = [
        file.read_text(encoding="utf-8")
        for folder in folders
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    ]
    return "\n".join([_NAMES, *texts, *map(library.module, library.modules(library.EXPLANATION))])
