"""`tracekit gate`: holds the figures of a comparison against requirements."""

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
  tracekit gate run.trace fp32.trace --require 'k3_kl < 1e-3' --require 'first_divergence_rate < 0.01'
  tracekit gate run.trace new.trace --null again.trace --require 'k3_kl <= 2 * floor' --junit gate.xml
  tracekit gate run.trace new.trace --null again.trace
  tracekit gate run.trace new.trace --config gate.toml --format json
"""

_EXIT_FAILED = 1


@click.command(name="gate", epilog=_EPILOG)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--require",
    "requirements",
    multiple=True,
    metavar="'METRIC < NUMBER'",
    help="A bound, with <, <=, >, >= or ==; raw. or processed. before the name chooses the basis, 'N * floor' in place "
    "of the number means the noise floor. May be repeated.",
)
@click.option(
    "--null",
    "nulls",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A repeat of A's run, which measures the noise floor. May be repeated.",
)
@click.option(
    "--config", type=click.Path(path_type=Path), help="TOML file: require, null, align, partial, any_tokenizer."
)
@click.option("--format", "output_format", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--junit", type=click.Path(path_type=Path), help="Write a JUnit XML report there too.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write JSON there too.")
@alignment_options
@limit_options
@cluster_options
def command(
    a: Path,
    b: Path,
    requirements: tuple[str, ...],
    nulls: tuple[Path, ...],
    config: Path | None,
    output_format: str,
    junit: Path | None,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Hold the figures of A against B to requirements; exit 0 where all are met, 1 where one is not.

    Names are those of `tracekit diff`, on the processed basis where they have one; and first_divergence_rate and
    token_divergence_rate, shares of requests. A requirement on a mean also shows its largest term. One that is not met
    by figures that repeats of one run may show too (--null) counts as met: 'within noise'. With --null and no
    requirement, A and B have to differ as repeats do.
    """
    from tracekit.analysis import connect
    from tracekit.analysis.figures import figures, null_sessions
    from tracekit.analysis.gate import GateConfig, Requirement, judge, no_farther
    from tracekit.report import verdicts as report

    given = GateConfig.read(config) if config else GateConfig()
    parsed = [Requirement.parse(text) for text in (*given.require, *requirements)]
    repeats = [*((config.parent / path) for path in given.null if config), *nulls]
    if not parsed and not repeats:
        raise click.UsageError(
            "no requirement; give --require 'k3_kl < 1e-3', --null with a repeat of A, or --config with `require`"
        )
    options["align"] = options["align"] or given.align
    options["partial"] = options["partial"] or given.partial
    options["any_tokenizer"] = options["any_tokenizer"] or given.any_tokenizer
    options["cluster"] = take_cluster(options)
    limits = {name: options[name] for name in ("memory_limit", "threads", "temp_dir", "cluster")}
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(QueryProgress())
        session = stack.enter_context(connect(a, b, progress=progress.show, **options))
        opened = null_sessions((a, *repeats), lambda first, second: connect(first, second, partial=True, **limits))
        for one in opened:
            stack.enter_context(one)
        known = figures(session, opened)
        found = judge(parsed or no_farther(known), known)
    for path, content in ((junit, report.to_junit(found)), (json_file, report.to_json(found))):
        if path is not None:
            with data_sink(path) as sink:
                sink.write(content)
    with data_sink(None) as sink:
        sink.write(report.to_json(found) if output_format == "json" else report.to_table(found))
    if not all(verdict.passed for verdict in found):
        click.get_current_context().exit(_EXIT_FAILED)
