"""`tracekit inspect`: shows what a trace holds."""

from __future__ import annotations

from pathlib import Path

import click

from tracekit.cli.output import data_sink

_EPILOG = """\b
Example:
  tracekit inspect run.trace
  tracekit inspect run.trace --format json | jq .rows_dropped
"""


@click.command(name="inspect", epilog=_EPILOG)
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True)
def command(trace: Path, output_format: str) -> None:
    """Show what TRACE holds: losses first, then configuration, time span, rows and bytes of each table."""
    from tracekit.report.contents import Contents
    from tracekit.store import Trace

    contents = Contents.of(Trace(trace))
    with data_sink(None) as sink:
        sink.write(contents.to_json() if output_format == "json" else contents.to_table())
