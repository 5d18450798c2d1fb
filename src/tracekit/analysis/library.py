"""The SQL standard library: which modules make it up, and in which order they are loaded.

A module is one .sql file, and its path below sql/ is its name. A session and the exported file load the same ones:
`MACROS` once, `TRACE` for each trace in its schema, and for two traces `SIDE` for each, then `PAIR`, which pairs their
requests and proves it, and `COMPARISON`. What a module calls the view `_find_x` becomes the table `_x`: it is computed
once, when the module is loaded. A session leaves comments, `TRACE_VIEWS`, `COMPARISON_SUMS` and `COMPARISON_VIEWS` to
the first question that names them: of small traces they take three times as long to load as all the rest, and of large
ones the sums do.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from string import Template
from types import MappingProxyType

import duckdb

from tracekit.analysis import comments, metrics


@dataclass(frozen=True)
class Where:
    """A module whose tables stay empty, without anything being read for them, where a view has no row."""

    view: str
    name: str


@dataclass(frozen=True)
class Either:
    """One of several modules: a quicker one, right only where a view has a row, or the one that is always right."""

    view: str
    quick: Either | str
    general: str


Step = str | Where | Either

# Each module may use what stands before it.
MACROS = ("prelude/arithmetic",)
# Only in a session, which knows the files when it makes the views.
FILES = ("prelude/parts",)
TRACE_TABLES = ("prelude/tables",)
TRACE_VIEWS = (
    "tokens/classes",
    "candidates/candidates",
    "caches/caches",
    "caches/staleness",
    "events/events",
)
TRACE = (*TRACE_TABLES, *TRACE_VIEWS)
KEYS = ("alignment/passes", "alignment/keys")
SIDE = (*KEYS, "alignment/gaps", Where("_gappy", "alignment/repeats"))
METHOD = ("alignment/method",)
PAIR = (
    *METHOD,
    "alignment/identities",
    "alignment/matches",
    "alignment/unlike",
    Where("_unlike", "alignment/forks"),
    "alignment/proof",
    "alignment/prompts",
    "alignment/early_forks",
    Where("_early_forks", "alignment/shifts"),
    "alignment/unaligned",
    "alignment/objections",
    "alignment/aligned",
    "alignment/report",
    "alignment/sides",
)
COMPARISON_PAIRS = (
    Either(
        "_as_they_stand",
        Either("_same_places", "alignment/pairs_in_place", "alignment/pairs_as_they_stand"),
        "alignment/pairs_by_match",
    ),
    "alignment/pairs",
    "metrics/arithmetic",
    "metrics/trainers",
)
# These read all pairs once.
COMPARISON_SUMS = (
    "metrics/aggregates",
    Either("_untrained", "metrics/sums_untrained", "metrics/sums"),
    "alignment/doubtful",
    Where("_doubtful", "alignment/ties"),
)
COMPARISON_VIEWS = (
    "metrics/metrics",
    "metrics/intervals",
    "metrics/floor",
    "alignment/divergence",
    "metrics/groups",
    "alignment/flips",
    "batches/batches",
    "weights/staleness",
    "tokens/exceedances",
    "requests/requests",
    "steps/steps",
    "positions/positions",
    "distributions/arithmetic",
    "distributions/full",
    "distributions/summary",
    "distributions/known",
    "distributions/bounds",
    "candidates/pairs",
    "explain/explained",
    "explain/curves",
    "explain/forks",
    "explain/excluded",
    "explain/ranks",
    "explain/settings",
)
COMPARISON = (*COMPARISON_PAIRS, *COMPARISON_SUMS, *COMPARISON_VIEWS)
# Only while `explain` runs, which has tables that a session lacks.
EXPLANATION = ("explain/impact",)
# Only where a session is given a tokenizer.
VOCABULARY = ("prelude/vocabulary",)
# Filled in for each trace and table of the format, by the session and by the exported file.
TEMPLATES = (
    "prelude/source",
    "prelude/source_journal",
    "prelude/in_place",
    "sharing/forks_measured",
    "sharing/forks_taken",
    "export/head",
    "export/checks",
    "export/options",
    "export/parts",
    "export/tail",
)

# Templates that the catalogue of metrics fills.
_FROM_CATALOGUE = ("metrics/aggregates", "metrics/sums", "metrics/sums_untrained", "metrics/metrics", "explain/impact")
# The same template, for traces without a trainer's columns.
_UNTRAINED = "_untrained"

# Comments that do not stand in the module, for the trace format has them.
_COMMENTS: Mapping[str, Callable[[], Iterator[str]]] = {
    "prelude/tables": comments.of_tables,
    "alignment/pairs": comments.of_pairs,
}

# Up to the end of the statement.
_FOUND = re.compile(r"^CREATE VIEW _find(_\w+)( AS$.*?;)$", re.MULTILINE | re.DOTALL)
_MADE = re.compile(r"^CREATE (?:VIEW|TABLE|MACRO) (\w+)", re.MULTILINE)
_WORD = re.compile(r"\w+")
_CREATE = re.compile(r"^CREATE (?=(VIEW|MACRO) )", re.MULTILINE)
_NOTHING: Mapping[str, str] = MappingProxyType({})
# One a line.
_COMMENT = re.compile(r"^COMMENT ON .*\n?", re.MULTILINE)


@functools.cache
def module(name: str) -> str:
    """Returns the text of one module: its .sql file, with what the catalogue of metrics puts into it."""
    return filled(name, metrics.catalogue()) if name in _FROM_CATALOGUE else _text(name)


def filled(name: str, chosen: Iterable[metrics.Metric]) -> str:
    """Returns the text of one of the catalogue's templates, filled with these metrics."""
    untrained = name.endswith(_UNTRAINED)
    return Template(_text(name.removesuffix(_UNTRAINED))).substitute(
        metrics.substitutions(chosen), **(metrics.UNTRAINED if untrained else metrics.TRAINED)
    )


def definition(name: str, *, empty: bool = False, given: Mapping[str, str] = _NOTHING, commented: bool = True) -> str:
    """Returns the statements that load a module: its text with tables for `_find_` views, and comments.

    Args:
        name: the module.
        empty: leave its tables empty.
        given: queries for the rows of some of its tables, by name, in place of its own.
        commented: with its comments, and those of the format.
    """

    def table(found: re.Match[str]) -> str:
        own = f"FROM _find{found[1]} WITH NO DATA" if empty else None
        query = given.get(found[1], own)
        return (
            f"CREATE TABLE {found[1]}{found[2]}"
            if query is None
            else f"{found[0]}\nCREATE TABLE {found[1]} AS {query};"
        )

    text = _FOUND.sub(table, module(name) if commented else _COMMENT.sub("", module(name)))
    return "\n".join([text, *(_COMMENTS[name]() if commented and name in _COMMENTS else ())])


@functools.cache
def made_by(step: Step) -> frozenset[str]:
    """Returns the names of the views, macros and tables that a step makes, in lower case."""
    found = [name.casefold() for module_name in modules((step,)) for name in _MADE.findall(module(module_name))]
    return frozenset([*found, *(name.removeprefix("_find") for name in found if name.startswith("_find_"))])


@functools.cache
def words_of(step: Step) -> frozenset[str]:
    """Returns the words of a step's statements, comments left out: what it uses is among them, in lower case."""
    found = frozenset(_WORD.findall(_COMMENT.sub("", "\n".join(map(module, modules((step,))))).casefold()))
    return found if isinstance(step, str) else found | {step.view.casefold()}


def modules(steps: Iterable[Step]) -> Iterator[str]:
    """Yields the modules that are right for any traces."""
    for step in steps:
        yield step if isinstance(step, str) else step.name if isinstance(step, Where) else step.general


def load(
    connection: duckdb.DuckDBPyConnection,
    steps: Iterable[Step],
    *,
    given: Mapping[str, str] = _NOTHING,
    commented: bool = True,
) -> None:
    """Loads modules into the connection's current schema.

    Args:
        connection: has what the modules use.
        steps: the modules.
        given: as for `definition`. Where anything is given, of several modules the one that is always right is loaded:
            which other is right would be looked up in all rows.
        commented: with their comments.
    """
    for step in steps:
        if isinstance(step, Where):
            empty = not _any(connection, step.view)
            connection.execute(definition(step.name, empty=empty, given=given, commented=commented))
        elif isinstance(step, Either):
            quick = not given and _any(connection, step.view)
            load(connection, [step.quick if quick else step.general], given=given, commented=commented)
        else:
            connection.execute(definition(step, given=given, commented=commented))


def load_temporarily(connection: duckdb.DuckDBPyConnection, steps: Iterable[Step]) -> None:
    """Loads modules of views and macros for this connection alone, in place of those that it has from before."""
    for name in modules(steps):
        connection.execute(_CREATE.sub("CREATE OR REPLACE TEMP ", module(name)))


def comment(connection: duckdb.DuckDBPyConnection, steps: Iterable[Step]) -> None:
    """Gives what modules made in the connection's current schema their comments."""
    for name in modules(steps):
        statements = [*_COMMENT.findall(module(name)), *(_COMMENTS[name]() if name in _COMMENTS else ())]
        if statements:
            connection.execute("\n".join(statements))


def _any(connection: duckdb.DuckDBPyConnection, view: str) -> bool:
    return bool(connection.execute(f"FROM {view} LIMIT 1").fetchall())


def _text(name: str) -> str:
    return resources.files(__package__).joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")
