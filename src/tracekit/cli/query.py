"""`tracekit query`: asks one or two traces in SQL."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from tracekit.cli.alignment_options import alignment_options
from tracekit.cli.limits import limit_options
from tracekit.cli.output import data_sink
from tracekit.cli.progress import QueryProgress
from tracekit.report.formats.base import BINARY, format_names

_EPILOG = """\b
Example:
  tracekit query run.trace "SELECT count(*) FROM tokens"
  tracekit query run.trace fp32.trace "FROM pairs ORDER BY abs(d) DESC LIMIT 10" --format csv
  tracekit query run.trace --tokenizer ./model "SELECT token_texts(top_token_ids) FROM tokens LIMIT 5"
  tracekit query run.trace fp32.trace "SELECT name, value FROM metrics" --format md >> report.md
  tracekit query run.trace fp32.trace - -o pairs.parquet --format parquet < pairs.sql
"""


@click.command(name="query", epilog=_EPILOG)
@click.argument("arguments", nargs=-1, required=True, metavar="A [B] SQL")
@click.option("--format", "output_format", type=click.Choice(format_names()), default="table", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; standard output by default.")
@click.option(
    "--max-rows", type=click.IntRange(min=0), default=1000, show_default=True, help="Rows a table shows; 0 for all."
)
@alignment_options
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="A model's folder, its tokenizer.json, or a Parquet file with the columns token_id and text; gives the view "
    "vocabulary and the macros token_text(id) and token_texts(ids).",
)
@limit_options
def command(
    arguments: tuple[str, ...],
    output_format: str,
    output: Path | None,
    max_rows: int,
    tokenizer: Path | None,
    **options: Any,
) -> None:
    """Run one SQL statement over trace A, or over A and B; SQL is '-' to read it from standard input.

    One trace: a view for each table (runs, requests, outcomes, steps, tokens, events, ...).
    Two traces: these views as a.tokens, b.tokens, ..., and pairs, first_divergence and metrics.
    `tracekit sql` lists and explains them all.
    Only statements that read are run.
    """
    paths, query = _split(arguments)
    if output_format in BINARY and output is None and sys.stdout.isatty():
        raise click.UsageError(
            f"{output_format} is not written to a terminal; give -o FILE, or redirect standard output"
        )

    from tracekit.analysis import connect
    from tracekit.report.rows import write_rows

    with (
        QueryProgress() as progress,
        connect(*paths, tokenizer=tokenizer, progress=progress.show, **options) as session,
    ):
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
