"""`tracekit query`: asks one or two traces in SQL."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tracekit.cli.output import data_sink

_EPILOG = """\b
Example:
  tracekit query run.trace "SELECT count(*) FROM tokens"
  tracekit query run.trace fp32.trace "FROM pairs ORDER BY abs(d) DESC LIMIT 10" --format csv
  tracekit query run.trace --tokenizer ./model "SELECT token_texts(top_token_ids) FROM tokens LIMIT 5"
  tracekit query run.trace fp32.trace - -o pairs.parquet --format parquet < pairs.sql
"""


@click.command(name="query", epilog=_EPILOG)
@click.argument("arguments", nargs=-1, required=True, metavar="A [B] SQL")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json", "csv", "parquet"]),
    default="table",
    show_default=True,
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; standard output by default.")
@click.option(
    "--max-rows", type=click.IntRange(min=0), default=1000, show_default=True, help="Rows a table shows; 0 for all."
)
@click.option(
    "--align",
    type=click.Choice(["request_id", "external_id", "prompt"]),
    help="How the requests of two traces are paired; see `tracekit diff --help`.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="A model's folder or tokenizer.json; gives the view vocabulary and the macros token_text(id) and "
    "token_texts(ids).",
)
def command(
    arguments: tuple[str, ...],
    output_format: str,
    output: Path | None,
    max_rows: int,
    align: str | None,
    tokenizer: Path | None,
) -> None:
    """Run one SQL statement over trace A, or over A and B; SQL is '-' to read it from standard input.

    One trace: a view for each table (runs, requests, outcomes, steps, tokens, events, ...).
    Two traces: these views as a.tokens, b.tokens, ..., and pairs, first_divergence and metrics.
    `SELECT view_name, comment FROM duckdb_views() WHERE comment <> ''` lists them, duckdb_columns() their columns.
    Only statements that read are run.
    """
    paths, query = _split(arguments)
    if output_format == "parquet" and output is None and sys.stdout.isatty():
        raise click.UsageError("parquet is not written to a terminal; give -o FILE, or redirect standard output")

    from tracekit.analysis import connect
    from tracekit.report.rows import write_rows

    with connect(*paths, align=align, tokenizer=tokenizer) as session:
        result = session.sql(sys.stdin.read() if query == "-" else query)
        with data_sink(output) as sink:
            num_hidden = write_rows(result, output_format, sink, max_rows=max_rows or None)
    if num_hidden:
        click.echo(f"tracekit: {num_hidden} more rows (--max-rows 0 shows all)", err=True)


def _split(arguments: tuple[str, ...]) -> tuple[list[str], str]:
    *paths, query = arguments
    if not paths or (len(paths) == 1 and Path(query).is_dir()):
        raise click.UsageError("no SQL given: the arguments are A [B] SQL")
    if len(paths) > 2:
        raise click.UsageError(f"{len(paths)} traces given, at most 2 can be asked; is the SQL in quotes?")
    return paths, query
