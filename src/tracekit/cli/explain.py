"""`tracekit explain`: names the causes of the differences between two traces."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from tracekit.cli.alignment_options import alignment_options
from tracekit.cli.limits import limit_options
from tracekit.cli.output import data_sink
from tracekit.cli.progress import QueryProgress

_EPILOG = """\b
Example:
  tracekit explain run.trace fp32.trace
  tracekit explain run.trace trainer.trace --null again.trace
  tracekit explain run.trace trainer.trace --format json | jq '.findings[0].cause'
  tracekit explain run.trace trainer.trace --sql temperature
"""


@click.command(name="explain", epilog=_EPILOG)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--null",
    "nulls",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A repeat of A's run: what differs between repeats is noise, and no finding. May be repeated.",
)
@click.option(
    "--format", "output_format", type=click.Choice(["table", "json", "md"]), default="table", show_default=True
)
@click.option("--sql", "cause", metavar="CAUSE", help="Print the SQL of this finding's evidence, and nothing else.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; standard output by default.")
@alignment_options
@limit_options
def command(
    a: Path,
    b: Path,
    nulls: tuple[Path, ...],
    output_format: str,
    cause: str | None,
    output: Path | None,
    **options: Any,
) -> None:
    """Explain why the logprobs of traces A and B differ.

    A is the recorded side, B the replayed or trained one. What differs is the value that each side's client used: what
    the engine reported, or a trainer computed; a side without a client is compared by the same kind of value. Each
    cause found has a p-value over all causes tried, what was estimated (a temperature, a position, a version), its
    share of k2, k3 and abs(d), SQL whose rows are the tokens that it touches, and the experiment that would settle it.
    Shares and what is left unexplained add up to one. Then: what a trainer's figures would be without each cause, and
    what differs between the two configurations. docs/explain.md says how.
    """
    from tracekit.analysis import connect
    from tracekit.analysis.explain import explain
    from tracekit.analysis.explain.impact import impacts
    from tracekit.analysis.explain.settings import setting_differences
    from tracekit.analysis.figures import null_sessions
    from tracekit.report.explanation import Report, evidence_of

    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(QueryProgress())
        session = stack.enter_context(connect(a, b, progress=progress.show, **options))
        limits = {name: options[name] for name in ("memory_limit", "threads", "temp_dir")}
        repeats = null_sessions((a, *nulls), lambda first, second: connect(first, second, partial=True, **limits))
        for repeat in repeats:
            stack.enter_context(repeat)
        explanation = explain(session, repeats, progress=progress.tell)
        if cause is not None:
            text = evidence_of(explanation, cause)
        else:
            report = Report(
                explanation, impacts(explanation.workspace), setting_differences(session, explanation.findings)
            )
            text = {"json": report.to_json, "md": report.to_markdown, "table": report.to_table}[output_format]()
    with data_sink(output) as sink:
        sink.write(text)
