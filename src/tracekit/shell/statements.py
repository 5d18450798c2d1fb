"""Cuts what is typed or read into statements, each ended by `;`, and dot-commands, each a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import duckdb


@dataclass(frozen=True)
class Piece:
    """One statement without its `;`, or one dot-command.

    Attributes:
        text: the piece, without blanks around it.
        line: the line it begins on, from 1.
    """

    text: str
    line: int = 1

    @property
    def is_command(self) -> bool:
        return self.text.startswith(".")


def split(text: str) -> tuple[list[Piece], str]:
    """Returns the pieces that are complete, and the text behind them.

    DuckDB's own tokenizer says where a `;` ends a statement, and where it stands in a string or comment. A dot-command
    is complete without its line's end.
    """
    pieces: list[Piece] = []
    # The tokenizer counts bytes.
    data = text.encode()
    begin = 0
    while True:
        # A statement begins at its first token: comments before it are none of its own.
        tokens = [
            offset for offset, kind in duckdb.tokenize(data[begin:].decode()) if kind != duckdb.token_type.comment
        ]
        if not tokens:
            return pieces, "" if not data[begin:].strip() else data[begin:].decode()
        first = begin + tokens[0]
        if data[first : first + 1] == b".":
            end = data.find(b"\n", first)
            end = len(data) if end < 0 else end
            stop = end
        else:
            ends = [begin + offset for offset in tokens if data[begin + offset : begin + offset + 1] == b";"]
            if not ends:
                return pieces, data[begin:].decode()
            stop, end = ends[0], ends[0] + 1
        found = data[first:stop].decode().strip()
        if found:
            pieces.append(Piece(found, data.count(b"\n", 0, first) + 1))
        begin = end


def is_complete(text: str) -> bool:
    """Whether nothing is open at the end of a text: it can be run, or holds nothing to run."""
    return not _has_content(split(text)[1])


def pieces_of(lines: Iterable[str]) -> Iterator[Piece]:
    """Yields pieces as soon as their last line is there; at the end, what no `;` ends too."""
    pending, above = "", 0
    for line in lines:
        pending += line
        pieces, rest = split(pending)
        for piece in pieces:
            yield Piece(piece.text, piece.line + above)
        # What was run leaves, and the line that it ended on with it.
        above += pending.count("\n") - rest.count("\n")
        pending = rest
    if _has_content(pending):
        yield Piece(pending.strip(), above + 1 + pending[: len(pending) - len(pending.lstrip())].count("\n"))


def _has_content(text: str) -> bool:
    return any(kind != duckdb.token_type.comment for _, kind in duckdb.tokenize(text))
