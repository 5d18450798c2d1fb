"""The SQL that a bisection asks of two traces."""

from __future__ import annotations

from importlib import resources


def query(name: str) -> str:
    """Returns the text of one .sql file."""
    return resources.files(__package__).joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")
