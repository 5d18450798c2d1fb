"""`tracekit demo`: shows what tracekit tells, on a pair of traces that comes with it."""

from __future__ import annotations

import click

from tracekit.cli.output import data_sink

_EPILOG = """\b
Example:
  tracekit demo
"""


@click.command(name="demo", epilog=_EPILOG)
def command() -> None:
    """Compare two small traces that come with tracekit: a rollout of vLLM in bf16, and its replay in fp32.

    Prints their diff and three queries with their answers, then where the traces are. Needs no model and no engine.
    """
    from tracekit.report.tour import write_tour

    with data_sink(None) as sink:
        write_tour(sink)
