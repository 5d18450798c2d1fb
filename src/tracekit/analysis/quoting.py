"""Texts and names as SQL writes them."""

from __future__ import annotations


def literal(text: str) -> str:
    """Returns a text as a literal."""
    return "'" + text.replace("'", "''") + "'"


def quoted(identifier: str) -> str:
    """Returns a name as an identifier, whatever it holds."""
    return '"' + identifier.replace('"', '""') + '"'
