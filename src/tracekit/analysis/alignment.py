"""Pairs the requests of two traces, and proves that they may be compared before anything is subtracted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

from tracekit.analysis import library, sharing
from tracekit.analysis.pairing import Pairing
from tracekit.errors import AlignmentError
from tracekit.store import Trace


@dataclass(frozen=True)
class Alignment:
    """How the requests of two traces were paired.

    Attributes:
        method: request_id (one trace descends from the other, or both from one parent), external_id (the caller's
            id and sample index), or prompt (prompt hash, then order of arrival).
        num_matched: requests with a counterpart.
        num_only_a: requests of A without one; the view `unaligned` says why.
        num_only_b: requests of B without one.
    """

    method: str
    num_matched: int
    num_only_a: int
    num_only_b: int


@dataclass(frozen=True)
class Unaligned:
    """Requests of one trace that no pair stands for, for one reason.

    Attributes:
        side: the trace that holds them, A or B.
        reason: as in the view `unaligned`.
        num_requests: how many.
        request_id: the first of them.
        detail: the reason in words, as it is for that one.
    """

    side: str
    reason: str
    num_requests: int
    request_id: str
    detail: str


def align(
    connection: duckdb.DuckDBPyConnection,
    a: Trace,
    b: Trace,
    pairing: Pairing,
    *,
    measure: sharing.Measuring | None = None,
    provisional: bool = False,
) -> Alignment:
    """Loads what the figures of two traces need, whose tables are there, pairs their requests, and proves it.

    The views and macros over them are left to whoever asks for one (see `pending`).

    Args:
        connection: has the tables of both traces.
        a, b: the traces, for messages.
        pairing: how requests are paired.
        measure: measures elsewhere what takes a look at every token; by default that is done here.
        provisional: what stands against a comparison leaves it empty, and raises nothing.

    Raises:
        AlignmentError: no request pairs, or a pair may not be compared; names the first one.
    """
    for name, value in (
        ("align", pairing.method),
        ("partial", pairing.partial),
        ("any_tokenizer", pairing.any_tokenizer),
        ("policy", pairing.policy),
        ("trainer_step", pairing.trainer_step),
    ):
        connection.execute(f"SET VARIABLE {name} = $1", [value])
    given = {} if measure is None else sharing.UNSEEN
    _for_each_side(connection, library.KEYS, given)
    library.load(connection, library.METHOD, commented=False)
    if measure is not None:
        sharing.take(connection, measure(_rows(connection, "SELECT method FROM _alignment")[0][0]))
        given = sharing.TAKEN
    _for_each_side(connection, library.SIDE[len(library.KEYS) :], given)
    library.load(connection, library.PAIR[len(library.METHOD) :], given=given, commented=False)
    objection = _rows(connection, "SELECT message FROM _objections ORDER BY place LIMIT 1")
    if objection and not provisional:
        raise AlignmentError(f"{a.path} and {b.path} do not align: {objection[0][0]}")
    library.load(connection, library.COMPARISON_PAIRS, given=given, commented=False)
    if measure is not None:
        library.load(connection, library.COMPARISON_SUMS, given=given, commented=False)
    return Alignment(*_rows(connection, "FROM _alignment_summary")[0])


def _for_each_side(
    connection: duckdb.DuckDBPyConnection, steps: Iterable[library.Step], given: Mapping[str, str]
) -> None:
    for schema in ("a", "b"):
        connection.execute(f"USE {schema}")
        library.load(connection, steps, given=given, commented=False)
    connection.execute("USE main")


def _rows(connection: duckdb.DuckDBPyConnection, query: str) -> list[Any]:
    return connection.execute(query).fetchall()
