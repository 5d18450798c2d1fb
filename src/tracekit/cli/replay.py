"""`tracekit replay`: score a trace's sequences on another backend or precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tracekit.replay import Progress, ReplaySummary

_DTYPES = click.Choice(["float32", "bfloat16", "float16"])


@click.command(
    "replay",
    epilog="\b\nExample:\n  tracekit replay run.trace -o fp32.trace --backend hf --model ./model --dtype float32\n"
    "  tracekit diff run.trace fp32.trace",
)
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="Where the new trace goes.")
@click.option("--backend", default="hf", show_default=True, help="What scores: 'hf' is Hugging Face transformers.")
@click.option("--model", type=click.Path(path_type=Path), help="The model; for 'hf' the folder of a checkpoint.")
@click.option("--dtype", type=_DTYPES, help="Dtype of weights and activations [default: float32].")
@click.option("--head-dtype", type=_DTYPES, help="Dtype of the last projection's operands [default: as --dtype].")
@click.option("--device", help="Device as torch names it [default: a GPU where there is one, else cpu].")
@click.option(
    "--batch-tokens",
    default=2048,
    show_default=True,
    type=click.IntRange(min=1),
    help="Most tokens of a forward pass, padding included; a longer sequence goes alone.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Score the first N requests only, in order of arrival.")
@click.option("--top-k", type=click.IntRange(min=1), help="Candidates to keep a token [default: as many as TRACE has].")
def command(
    trace: Path,
    out: Path,
    backend: str,
    model: Path | None,
    dtype: str | None,
    head_dtype: str | None,
    device: str | None,
    batch_tokens: int,
    limit: int | None,
    top_k: int | None,
) -> None:
    """Score the recorded tokens of TRACE under another backend or precision.

    Prompts and tokens are given, nothing is sampled: the result is a trace that can be compared with TRACE row by row,
    and replayed again.
    """
    from tracekit.replay import replay

    with _ProgressBar() as bar:
        summary = replay(
            trace,
            out,
            backend=backend,
            model=model,
            limit=limit,
            batch_tokens=batch_tokens,
            top_k=top_k,
            progress=bar.show,
            dtype=dtype,
            head_dtype=head_dtype,
            device=device,
        )
    click.echo(_summary(summary), err=True)


def _summary(summary: ReplaySummary) -> str:
    text = (
        f"{summary.path}: {summary.num_tokens:,} tokens of {summary.num_sequences:,} requests scored "
        f"in {summary.seconds:.1f} s ({summary.tokens_per_second:,.0f} tokens/s)"
    )
    if summary.num_unscored_tokens:
        text += (
            f"; {summary.num_unscored_tokens:,} left out, as their rows or rows before them are missing in the parent"
        )
    return text


class _ProgressBar:
    """A bar on standard error, where that is a terminal; it moves with input tokens, the rate counts scored ones."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("loading", total=None, rate="")

    def __enter__(self) -> _ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        if progress.num_sequences == 0:
            self._bar.reset(self._task)  # Loading the model counts neither for the rate nor for the time left.
        elapsed = self._bar.tasks[0].elapsed or 0.0
        rate = f"{progress.num_tokens / elapsed:,.0f} tokens/s" if progress.num_tokens and elapsed else ""
        self._bar.update(
            self._task,
            description=f"{progress.num_sequences}/{progress.total_sequences} requests",
            total=progress.total_input_tokens,
            completed=progress.num_input_tokens,
            rate=rate,
        )
