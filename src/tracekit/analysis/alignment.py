"""Finds the request of B for each request of A, and proves that they may be compared before anything is subtracted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import duckdb

from tracekit.analysis import library
from tracekit.errors import AlignmentError, ConfigError, nearest
from tracekit.store import Manifest, Trace

Method = Literal["request_id", "external_id", "prompt"]
METHODS: tuple[str, ...] = get_args(Method)

_OTHER_METHOD = "pair them by prompt (align='prompt', --align prompt), or compare traces of the same prompts"


@dataclass(frozen=True)
class Alignment:
    """How the requests of two traces were paired.

    Attributes:
        method: request_id (one trace descends from the other, or both from one parent), external_id (the caller's
            id and sample index), or prompt (prompt hash, then order of arrival).
        num_matched: requests with a counterpart.
        num_only_a: requests of A without one.
        num_only_b: requests of B without one.
    """

    method: str
    num_matched: int
    num_only_a: int
    num_only_b: int


def align(connection: duckdb.DuckDBPyConnection, a: Trace, b: Trace, method: str | None) -> Alignment:
    """Pairs requests and proves it; makes the tables _matches and _aligned in the current schema.

    Raises:
        AlignmentError: no request pairs, or a pair may not be compared; names the first one.
        ConfigError: an unknown method.
    """
    if method is not None and method not in METHODS:
        raise ConfigError(f"no alignment '{method}'{nearest(method, METHODS)}")
    for side in ("a", "b"):
        connection.execute(f"CREATE TABLE {side}._keys AS FROM {side}._find_keys")
    library.load(connection, library.MATCHING)
    chosen = method or _method(connection, a.manifest, b.manifest)
    connection.execute("SET VARIABLE alignment = $1", [chosen])
    connection.execute("CREATE TABLE _matches AS FROM _find_matches")
    library.load(connection, library.PROOF)
    connection.execute("CREATE TABLE _aligned AS FROM _find_aligned")
    library.load(connection, library.OBJECTIONS)
    alignment = Alignment(chosen, *_one(connection, "FROM _counts").values())
    for objection in _objections(connection, alignment):
        raise AlignmentError(f"{a.path} and {b.path} do not align: {objection}")
    return alignment


def _method(connection: duckdb.DuckDBPyConnection, a: Manifest, b: Manifest) -> Method:
    if a.trace_id in (b.trace_id, b.parent) or (a.parent is not None and a.parent in (b.trace_id, b.parent)):
        return "request_id"
    usable = _one(connection, "FROM _external_ids_usable")["usable"]
    return "external_id" if usable else "prompt"


def _objections(connection: duckdb.DuckDBPyConnection, alignment: Alignment) -> Iterator[str]:
    """Yields what stands against comparing, the most telling first."""
    if duplicate := _first(connection, "_duplicate_tokens"):
        yield (
            f"trace {duplicate['side']} holds {duplicate['num']} output index(es) of request "
            f"'{duplicate['request_id']}' twice, first {_first_duplicate(connection, duplicate)}; "
            "remove the part that was written twice"
        )
    if not alignment.num_matched:
        yield (
            f"none of {alignment.num_only_a} request(s) of A has a counterpart among {alignment.num_only_b} of B by "
            f"{alignment.method}; {_way_out(alignment)}"
        )
    if ambiguous := _first(connection, "_ambiguous_matches"):
        yield (
            f"request '{ambiguous['request_id']}' of {ambiguous['side']} has {ambiguous['num']} counterparts by "
            f"{alignment.method}, for it stands in several runs of one trace; {_way_out(alignment)}"
        )
    if prompts := _first(connection, "_unequal_prompts"):
        yield f"request {_names(prompts)}: {_prompt_difference(prompts)}; {_way_out(alignment)}"
    if unknown := _first(connection, "_unknown_prompts"):
        yield (
            f"request {_names(unknown)}: trace {unknown['side']} does not hold its prompt, so equal context "
            "cannot be proven; record the prompt ids too"
        )
    if moved := _first(connection, "_unequal_positions"):
        yield (
            f"request {_names(moved)}: output token {moved['output_index']} stands at different positions of "
            "the sequence; one of the traces is malformed"
        )


def _first_duplicate(connection: duckdb.DuckDBPyConnection, duplicate: dict[str, Any]) -> int:
    rows = f"SELECT output_index FROM {duplicate['side'].lower()}._tokens WHERE run_id = $1 AND request_id = $2"
    repeated = "AND NOT is_prompt GROUP BY ALL HAVING count(*) > 1 ORDER BY output_index"
    key = [duplicate["run_id"], duplicate["request_id"]]
    index: int = connection.execute(f"{rows} {repeated} LIMIT 1", key).fetchall()[0][0]
    return index


def _prompt_difference(row: dict[str, Any]) -> str:
    if row["a_length"] is None or row["b_length"] is None:
        return "the prompt hashes differ"
    lengths = f"{row['a_length']} prompt tokens in A, {row['b_length']} in B"
    if row["a_token_id"] is None or row["b_token_id"] is None:
        return f"{lengths}, equal up to position {row['position']} where the shorter one ends"
    return (
        f"the prompts differ at position {row['position']}, token {row['a_token_id']} in A, "
        f"{row['b_token_id']} in B ({lengths})"
    )


def _names(row: dict[str, Any]) -> str:
    a, b = row["a_request_id"], row["b_request_id"]
    return f"'{a}'" if a == b else f"'{a}' of A with '{b}' of B"


def _way_out(alignment: Alignment) -> str:
    return "compare traces of the same prompts" if alignment.method == "prompt" else _OTHER_METHOD


def _first(connection: duckdb.DuckDBPyConnection, view: str) -> dict[str, Any] | None:
    return _one(connection, f"FROM {view} LIMIT 1") or None


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, Any]:
    cursor = connection.execute(query)
    names = [column[0] for column in cursor.description]
    row = cursor.fetchone()
    return dict(zip(names, row, strict=True)) if row else {}
