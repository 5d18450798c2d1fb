"""`tracekit diff`: compares two traces."""

from __future__ import annotations

from pathlib import Path

import click

from tracekit.cli.output import data_sink

_EPILOG = """\b
Example:
  tracekit diff run.trace fp32.trace
  tracekit diff run.trace fp32.trace --format json | jq .metrics.processed.kl
"""


@click.command(name="diff", epilog=_EPILOG)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--format", "output_format", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True
)
@click.option(
    "--align",
    type=click.Choice(["request_id", "external_id", "prompt"]),
    help="How requests are paired. By default by request id where the traces are related, else by the callers' "
    "ids where they are unique, else by prompt.",
)
def command(a: Path, b: Path, output_format: str, align: str | None) -> None:
    """Compare traces A and B: how they align, their metrics, where they first diverge.

    A is the recorded side, B the replayed or trained one; d is logprob B minus logprob A.
    Figures marked descriptive do not estimate what their names say: those of raw logprobs, and those of tokens
    that A did not sample itself. csv holds the metrics, json all but the list of requests.
    """
    from tracekit.analysis import connect
    from tracekit.report.comparison import Comparison

    with connect(a, b, align=align) as session:
        comparison = Comparison.of(session)
    render = {"table": comparison.to_table, "json": comparison.to_json, "csv": comparison.to_csv}[output_format]
    with data_sink(None) as sink:
        sink.write(render())
