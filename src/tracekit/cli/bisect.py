"""`tracekit bisect`: which settings of a replay take one trace's scores to another's."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tracekit.cli.alignment_options import alignment_options
from tracekit.cli.output import data_sink
from tracekit.cli.replay_progress import ReplayBar

if TYPE_CHECKING:
    from tracekit.bisect.result import Step
    from tracekit.replay import Progress

_EPILOG = """\b
Example:
  tracekit bisect run.trace --against fp32.trace --model ./model
  tracekit bisect run.trace --against trainer.trace --model ./model --vary head,dtype=bfloat16,float32 --dry-run
  tracekit bisect run.trace --against new.trace --backend vllm --model ./model --vary cache,batch,head
  tracekit bisect run.trace --against new.trace --backend vllm --model ./model --vary engine=~/v0/bin/python
  tracekit bisect run.trace --against new.trace --backend vllm --model ./model --vary cache --through dtype=float32
  tracekit bisect run.trace --against fp32.trace --model ./model --minimise report
"""


@click.command(name="bisect", epilog=_EPILOG)
@click.argument("trace", type=click.Path(path_type=Path))
@click.option(
    "--against",
    required=True,
    type=click.Path(path_type=Path),
    help="B: another trace of the same requests, whose scores differ.",
)
@click.option(
    "--vary",
    multiple=True,
    metavar="FACTOR[=LEVEL,…],…",
    help="What is varied, in this order: engine, dtype, head, attention, mode, batch, cache, chunked_prefill, "
    "async_scheduling, kernels [default: all that the backend has]. May be repeated.",
)
@click.option(
    "--through",
    multiple=True,
    metavar="FACTOR=LEVEL,…",
    help="Also divide the difference on the way through these settings, e.g. dtype=float32: what goes with them on A's "
    "side, what is there where both sides have them, and what goes with them on B's side.",
)
@click.option("--backend", default="hf", show_default=True, help="What replays, as of `tracekit replay`.")
@click.option("--model", type=click.Path(path_type=Path), help="The model, as of `tracekit replay`.")
@click.option(
    "--python", help="Interpreter with vLLM and tracekit, for backend vllm [default: the one that runs this]."
)
@click.option(
    "--option",
    "-O",
    "texts",
    multiple=True,
    metavar="NAME=VALUE",
    help="A further option of all replays, as the backend names it; repeated for several.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the replays; those that stand there are used again [default: TRACE with the suffix .bisect].",
)
@click.option(
    "--null",
    "nulls",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A repeat of A's run, which measures the noise floor [default: the baseline's replay against A].",
)
@click.option("--where", metavar="SQL", help="Replay the requests for which this is true, as of `tracekit replay`.")
@click.option("--sample", type=click.IntRange(min=1), help="Replay N requests that stand for all.")
@click.option("--limit", type=click.IntRange(min=1), help="Replay the first N requests only, in order of arrival.")
@click.option(
    "--basis", type=click.Choice(["raw", "processed"]), help="Which logprobs [default: raw where both sides have them]."
)
@click.option("--all", "tries_all", is_flag=True, help="Replay every factor alone, also once the answer is settled.")
@click.option("--dry-run", is_flag=True, help="Show the plan, and replay nothing.")
@click.option(
    "--minimise",
    "minimised",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write the fewest requests and tokens that still show the difference there, as two small traces.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(min=0, min_open=True),
    metavar="NATS",
    help="For --minimise: a token shows the difference where it is so large [default: half of the largest].",
)
@click.option(
    "--format", "output_format", type=click.Choice(["table", "json", "md"]), default="table", show_default=True
)
@click.option("--output", type=click.Path(path_type=Path), help="File to write; standard output by default.")
@alignment_options
def command(
    trace: Path,
    against: Path,
    vary: tuple[str, ...],
    through: tuple[str, ...],
    backend: str,
    model: Path | None,
    python: str | None,
    texts: tuple[str, ...],
    out: Path | None,
    nulls: tuple[Path, ...],
    where: str | None,
    sample: int | None,
    limit: int | None,
    basis: str | None,
    tries_all: bool,
    dry_run: bool,
    minimised: Path | None,
    threshold: float | None,
    output_format: str,
    output: Path | None,
    any_tokenizer: bool,
    **alignment: Any,
) -> None:
    """Find which settings take the scores of TRACE (A) to those of another trace of the same requests (B).

    TRACE is replayed: at the baseline, which is as near as the backend comes to what TRACE says of itself, then with
    one factor changed at a time, then with several. It stops where a replay reaches B: where no more is left than the
    noise floor, or a hundredth of the difference. Shares are of k2 = d²/2, with k3 and abs(d) beside it: factors change
    one after the other, in one order and in the other; the share is the mean, the interaction what both differ by.
    With the residual they add up to 100%. docs/bisect.md says more.
    """
    from tracekit.analysis import requests_where
    from tracekit.bisect.minimise import check_place, minimise
    from tracekit.bisect.plan import make_plan
    from tracekit.bisect.search import search
    from tracekit.replay import parsed_options
    from tracekit.report import bisection as report

    options = parsed_options(backend, texts) if texts else {}
    if minimised is not None:
        check_place(minimised)
    plan = make_plan(
        trace,
        against,
        vary=vary,
        backend=backend,
        model=model,
        out=out or trace.with_name(f"{trace.name}.bisect"),
        nulls=nulls,
        only=None if where is None else requests_where(trace, where),
        sample=sample,
        limit=limit,
        basis=basis,
        any_tokenizer=any_tokenizer,
        options=options if python is None else {**options, "python": python},
        alignment=alignment,
        through=through,
    )
    if dry_run:
        planned = {"table": report.plan_to_table, "json": report.plan_to_json, "md": report.plan_to_md}
        _write(output, planned[output_format](plan.described()))
        return
    # Backends may tell of their own troubles on standard output.
    with contextlib.redirect_stdout(sys.stderr), _Watcher() as watcher:
        found = search(plan, watcher, tries_all=tries_all)
        small = None if minimised is None else minimise(plan, found, minimised, threshold=threshold)
    written = {"table": report.to_table, "json": report.to_json, "md": report.to_md}
    _write(output, written[output_format](found))
    if small is not None and minimised is not None:
        _write(minimised / "report.md", report.to_report(found, small))
        click.echo(report.minimised_line(small), err=True)


def _write(output: Path | None, content: bytes) -> None:
    with data_sink(output) as sink:
        sink.write(content)


class _Watcher:
    """Tells on standard error of each replay: a bar while it runs, a line when it has ended."""

    def __init__(self) -> None:
        self._bar = ReplayBar()

    def __enter__(self) -> _Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begins(self, label: str, *, is_there: bool) -> Callable[[Progress], None] | None:
        if is_there:
            return None
        self._bar = ReplayBar(f"{label}: ")
        self._bar.start()
        return self._bar.show

    def ends(self, step: Step, left: float | None) -> None:
        self._bar.stop()
        if left is None:
            click.echo(f"{step.label}: cannot be replayed: {step.reason}", err=True)
            return
        how = "was there" if step.is_reused else f"{step.seconds:.1f} s"
        click.echo(f"{step.label}: {how}; leaves {left:.1%} of the difference", err=True)
