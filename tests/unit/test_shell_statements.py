"""Cutting text into statements and dot-commands."""

from __future__ import annotations

import pytest

from tracekit.shell.statements import Piece, is_complete, pieces_of, split


@pytest.mark.parametrize(
    ("text", "pieces", "rest"),
    [
        ("", [], ""),
        ("SELECT 1", [], "SELECT 1"),
        ("SELECT 1;", [("SELECT 1", 1)], ""),
        ("SELECT 1; SELECT", [("SELECT 1", 1)], " SELECT"),
        ("SELECT ';' -- ;\n, 2;", [("SELECT ';' -- ;\n, 2", 1)], ""),
        ("SELECT /* ; */ $$;$$, \"a;b\", e'\\';';", [("SELECT /* ; */ $$;$$, \"a;b\", e'\\';'", 1)], ""),
        ("SELECT 'é€';\nSELECT 2;", [("SELECT 'é€'", 1), ("SELECT 2", 2)], ""),
        (";;\n;", [], ""),
        (".mode csv\nSELECT 1;", [(".mode csv", 1), ("SELECT 1", 2)], ""),
        ("-- why\n\n.help", [(".help", 3)], ""),
        (".read a;b.sql\n", [(".read a;b.sql", 1)], ""),
        ("SELECT '\n.quit\n';", [("SELECT '\n.quit\n'", 1)], ""),
        ("SELECT 1;\n-- the end", [("SELECT 1", 1)], "\n-- the end"),
    ],
)
def test_split(text: str, pieces: list[tuple[str, int]], rest: str) -> None:
    assert split(text) == ([Piece(*piece) for piece in pieces], rest)


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("SELECT 1;", True),
        ("SELECT 1; -- done", True),
        (".help", True),
        ("", True),
        ("-- nothing", True),
        ("SELECT 1", False),
        ("SELECT 1; SELECT 2", False),
        ("SELECT ';", False),
        ("SELECT 1 -- ;", False),
        ("SELECT /* ;", False),
    ],
)
def test_is_complete(text: str, complete: bool) -> None:
    assert is_complete(text) == complete


def test_pieces_come_when_their_last_line_is_there() -> None:
    given = []

    def lines() -> object:
        for line in ["-- first\n", "SELECT\n", "1;\n", "\n", ".mode csv\n", "SELECT 2; SELECT 3\n", ";SELECT\n", "4"]:
            given.append(line)
            yield line

    found = [(piece.text, piece.line, len(given)) for piece in pieces_of(lines())]  # type: ignore[arg-type]
    assert found == [
        ("SELECT\n1", 2, 3),
        (".mode csv", 5, 5),
        ("SELECT 2", 6, 6),
        ("SELECT 3", 6, 7),
        ("SELECT\n4", 7, 8),
    ]
