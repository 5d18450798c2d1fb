"""`tracekit sql`: lists, explains and exports the SQL library."""

from __future__ import annotations

from pathlib import Path

import click

from tracekit.cli.output import data_sink

_EPILOG = """\b
Example:
  tracekit sql
  tracekit sql pairs
  tracekit sql first_divergence --definition
  tracekit sql --export -o lib.sql
"""


@click.command(name="sql", epilog=_EPILOG)
@click.argument("name", required=False)
@click.option("--definition", is_flag=True, help="With NAME: show the statement that makes it, too.")
@click.option("--export", is_flag=True, help="Write the library as one file of SQL, for a DuckDB without tracekit.")
@click.option("--one", is_flag=True, help="With --export: for one trace instead of two.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; standard output by default.")
def command(name: str | None, definition: bool, export: bool, one: bool, output: Path | None) -> None:
    """List the views and macros of the SQL library, explain the one called NAME, or export all of them.

    The exported file runs in any DuckDB from 1.4 on: its command line, a notebook, DBeaver. It reads the traces that
    the variables a and b name, their Parquet parts only, and refuses what `tracekit diff` refuses. The variables align,
    partial and any_tokenizer stand for the options of the same names.
    """
    if export and (name is not None or definition):
        raise click.UsageError("--export writes the whole library; leave NAME and --definition out")
    if one and not export:
        raise click.UsageError("--one says what --export writes; give both")
    if definition and name is None:
        raise click.UsageError("--definition is of one view or macro; name it")
    with data_sink(output) as sink:
        sink.write(_exported(one) if export else _described(name, definition))


def _exported(one: bool) -> bytes:
    from tracekit.analysis.export import exported

    return exported(1 if one else 2).encode()


def _described(name: str | None, definition: bool) -> bytes:
    from tracekit.analysis.reference import entries, entry
    from tracekit.report.sql_library import explanation, listing

    return listing(entries()) if name is None else explanation(entry(name), definition=definition)
