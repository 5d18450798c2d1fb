"""The SQL library as one file, for a DuckDB without tracekit: over the parts of traces that variables name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from string import Template

from tracekit import schema
from tracekit.analysis import library
from tracekit.analysis.pairing import METHODS
from tracekit.analysis.quoting import literal
from tracekit.analysis.source import columns_of, source
from tracekit.version import __version__

_CREATE = re.compile(r"^CREATE (?=(VIEW|TABLE|MACRO) )", re.MULTILINE)
# A part's name: writer and number.
_PART = r"[/\\]([A-Za-z0-9][A-Za-z0-9_-]*)-([0-9]{6,})[.]parquet$"

_USAGE_ONE = """\
--   SET VARIABLE a = '.../run.trace';
--   .read lib.sql
--   FROM tokens LIMIT 10;"""
_USAGE_TWO = """\
--   SET VARIABLE a = '.../run.trace';
--   SET VARIABLE b = '.../fp32.trace';
--   .read lib.sql
--   FROM metrics;
--
-- How they are compared may be set before: align ('request', 'external' or 'prompt'), partial (true: one trace may
-- hold a part of the other), any_tokenizer (true: files of tokenizers may differ)."""


def exported(num_traces: int = 2) -> str:
    """Returns a script that makes the views, macros and comments of a session, and raises what a session raises.

    Args:
        num_traces: 2 for traces `a` and `b`, compared; 1 for trace `a` alone.
    """
    return "\n".join(_two() if num_traces == 2 else _one())


def _one() -> Iterator[str]:
    yield _filled("export/head", version=__version__, what="one trace", usage=_USAGE_ONE)
    yield from _checks("a")
    yield "SET parquet_metadata_cache = true;"
    yield from _modules(library.MACROS)
    yield from _trace("a")


def _two() -> Iterator[str]:
    yield _filled("export/head", version=__version__, what="two traces", usage=_USAGE_TWO)
    yield "USE main;"
    # What is left of traces that were compared before must not be taken for these.
    yield "DROP TABLE IF EXISTS _aligned;"
    yield from _checks("a")
    yield from _checks("b")
    yield _filled("export/options", methods=", ".join(map(literal, METHODS)))
    yield "SET parquet_metadata_cache = true;"
    yield "CREATE OR REPLACE TABLE _token_texts (texts VARCHAR[]);"
    yield from _modules(library.MACROS)
    for side in ("a", "b"):
        yield f"CREATE SCHEMA IF NOT EXISTS {side};"
        yield f"USE {side};"
        yield from _trace(side)
        yield from _modules(library.SIDE)
    yield "USE main;"
    yield from _modules(library.PAIR)
    yield from _modules(library.COMPARISON)
    yield _filled("export/tail")


def _checks(side: str) -> Iterator[str]:
    yield _filled("export/checks", side=side, major=str(schema.MAJOR))
    columns = ", ".join(f"'{name}': manifest ->> '{name}'" for name in ("trace_id", "parent", "role"))
    yield f"SET VARIABLE _{side}_manifest = (SELECT {{{columns}}} FROM (SELECT getvariable('_manifest') AS manifest));"


def _trace(side: str) -> Iterator[str]:
    for name in schema.table_names():
        table = schema.table(name)
        yield _filled("export/parts", side=side, table=name, pattern=literal(_PART))
        yield f"CREATE OR REPLACE TABLE _journal_{name} ({columns_of(name)});"
        yield _replacing(source(table, f"getvariable('_{side}_{name}')"))
    yield f"CREATE OR REPLACE TABLE _manifest AS SELECT unnest(getvariable('_{side}_manifest'));"
    yield from _modules(library.TRACE)


def _modules(steps: Iterable[library.Step]) -> Iterator[str]:
    for name in library.modules(steps):
        yield f"\n-- {name}"
        yield _replacing(library.definition(name))


def _replacing(text: str) -> str:
    """Returns definitions that may be run again."""
    return _CREATE.sub("CREATE OR REPLACE ", text)


def _filled(template: str, /, **values: str) -> str:
    return Template(library.module(template)).substitute(values)
