"""`tracekit shell`: asks one or two traces interactively."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from tracekit.cli.alignment_options import alignment_options

_EPILOG = """\b
Example:
  tracekit shell run.trace
  tracekit shell run.trace fp32.trace --tokenizer ./model
  tracekit shell run.trace fp32.trace < report.sql > report.txt
  tracekit shell run.trace fp32.trace --cli duckdb
"""


@click.command(name="shell", epilog=_EPILOG)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path), required=False)
@alignment_options
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="A model's folder, its tokenizer.json, or a Parquet file with the columns token_id and text; gives the view "
    "vocabulary and the macros token_text(id) and token_texts(ids).",
)
@click.option(
    "--cli",
    "program",
    type=click.Choice(["duckdb", "harlequin"]),
    help="Open this program on the same views and macros instead, where it is installed.",
)
def command(a: Path, b: Path | None, tokenizer: Path | None, program: str | None, **pairing: Any) -> None:
    """Ask trace A, or A and B, in SQL: statement after statement.

    On a terminal: statements may have several lines and end with ';', Tab completes names, the arrow keys and Ctrl-R
    find what was typed before, Ctrl-C ends a query, Ctrl-D leaves. `.help` lists the library and the commands.
    From a pipe or a file statements are read and run in order, up to the first that fails.
    Only statements that read are run; see `tracekit query --help` for the views.
    """
    from tracekit.analysis import connect

    if program is not None:
        from tracekit.shell.programs import open_program

        sys.exit(
            open_program(program, lambda database: connect(a, b, tokenizer=tokenizer, database=database, **pairing))
        )

    from tracekit.shell.run import run_shell

    with connect(a, b, tokenizer=tokenizer, **pairing) as session:
        run_shell(session, sys.stdin, sys.stdout.buffer)
