"""`tracekit diff`: compares two traces."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from tracekit.cli.alignment_options import alignment_options
from tracekit.cli.cluster_options import cluster_options, take_cluster
from tracekit.cli.limits import limit_options
from tracekit.cli.output import data_sink
from tracekit.cli.progress import QueryProgress

_EPILOG = """\b
Example:
  tracekit diff run.trace fp32.trace
  tracekit diff run.trace fp32.trace --null again.trace --all
  tracekit diff run.trace fp32.trace --by weight_version
  tracekit diff run.trace fp32.trace --format json | jq .metrics.processed.kl
  tracekit diff run.trace trainer.trace --policy current --trainer-step 12
  tracekit diff run.trace fp32.trace --engine ray --address auto --num-workers 8
"""

# What people group by, as expressions over the columns of pairs.
_GROUPS = {
    "request": "request_id",
    "step": "a_step_id",
    "position": "position_bin(position)",
    "weight_version": "a_weight_version",
    "batch_size": "batch_size_of(a_run_id, a_step_id)",
    "cached": "was_cached(a_run_id, request_id)",
    "token_class": "token_class(a_logprob)",
}


@click.command(name="diff", epilog=_EPILOG)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json", "csv", "parquet", "md"]),
    default="table",
    show_default=True,
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; standard output by default.")
@click.option("--all", "everything", is_flag=True, help="Show every metric; by default a table shows the main ones.")
@click.option(
    "--null",
    "nulls",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A repeat of A's run: what differs between repeats is the noise floor. May be repeated.",
)
@click.option("--by", "group", type=click.Choice(list(_GROUPS)), help="Metrics of each group of tokens instead.")
@alignment_options
@limit_options
@cluster_options
def command(
    a: Path,
    b: Path,
    output_format: str,
    output: Path | None,
    everything: bool,
    nulls: tuple[Path, ...],
    group: str | None,
    **options: Any,
) -> None:
    """Compare traces A and B: how they align, their metrics, where they first diverge.

    A is the recorded side, B the replayed or trained one; d is logprob B minus logprob A. `tracekit sql
    metric_definitions` and docs/metrics.md say what each metric is. Intervals are of 95%, from resampling whole
    requests; '?' marks those that cover less. '~' marks figures within the noise floor: that of --null, or without one
    what a bf16 step implies, as a model. Figures marked descriptive do not estimate what their names say: those of raw
    logprobs, and those of tokens that A did not sample itself. csv, parquet and md hold the metrics, json all but the
    list of requests.
    """
    from tracekit.analysis import connect
    from tracekit.analysis.figures import null_sessions
    from tracekit.report.comparison import Comparison
    from tracekit.report.rows import write_rows

    options["cluster"] = take_cluster(options)
    if group is not None and options["cluster"] is not None:
        raise click.UsageError("--by reads all tokens in one process: leave --engine ray out")
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(QueryProgress())
        session = stack.enter_context(connect(a, b, progress=progress.show, **options))
        if group is not None:
            rows = session.sql(f"FROM metric_intervals_by({_GROUPS[group]})")
            with data_sink(output) as sink:
                write_rows(rows, output_format, sink)
            return
        limits = {name: options[name] for name in ("memory_limit", "threads", "temp_dir", "cluster")}
        repeats = null_sessions((a, *nulls), lambda first, second: connect(first, second, partial=True, **limits))
        for repeat in repeats:
            stack.enter_context(repeat)
        comparison = Comparison.of(session, repeats)
    with data_sink(output) as sink:
        if output_format == "table":
            sink.write(comparison.to_table(everything=everything))
        elif output_format == "json":
            sink.write(comparison.to_json())
        else:
            comparison.write_metrics(output_format, sink)
