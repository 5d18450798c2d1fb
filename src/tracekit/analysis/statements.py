"""Lets through only SQL statements that read: a trace is untrusted data, and so is a query that came with it."""

from __future__ import annotations

import re

import duckdb

from tracekit.analysis.failures import query_error
from tracekit.errors import QueryError

_EXPLAIN = re.compile(r"\s*EXPLAIN\b\s*(ANALYZE\b|\([^()']*\))?", re.IGNORECASE)
_PIVOT = re.compile(r"\s*PIVOT\b", re.IGNORECASE)
_ALLOWED = "only statements that read are run: SELECT, FROM, WITH, VALUES, PIVOT, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN"


def reading_statement(connection: duckdb.DuckDBPyConnection, query: str) -> duckdb.Statement:
    """Returns the one statement of a query.

    Raises:
        QueryError: DuckDB cannot parse it, it is not one statement, or it does more than read.
    """
    try:
        statements = connection.extract_statements(query)
    except duckdb.Error as error:
        raise query_error(error) from error
    if len(statements) != 1:
        found = "no statement" if not statements else f"{len(statements)} statements"
        raise QueryError(f"the query holds {found}; give one (WITH … AS joins several into one)")
    statement = statements[0]
    if not _reads(connection, statement):
        kind = query.split(maxsplit=1)[0].upper() if query.split() else "this"
        raise QueryError(f"{kind} is not run on a trace; {_ALLOWED} (`tracekit query -o FILE` writes results)")
    return statement


def _reads(connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement) -> bool:
    if statement.type == duckdb.StatementType.SELECT:
        return True
    # DuckDB turns a PIVOT into several statements, and whatever holds one: only a bare PIVOT merely reads.
    if statement.type == duckdb.StatementType.MULTI:
        return _PIVOT.match(statement.query) is not None
    # EXPLAIN ANALYZE runs what it explains.
    if statement.type == duckdb.StatementType.EXPLAIN:
        prefix = _EXPLAIN.match(statement.query)
        return prefix is not None and _rest_reads(connection, statement.query[prefix.end() :])
    return False


def _rest_reads(connection: duckdb.DuckDBPyConnection, query: str) -> bool:
    try:
        explained = connection.extract_statements(query)
    except duckdb.Error:
        return False
    return len(explained) == 1 and explained[0].type == duckdb.StatementType.SELECT
