"""`tracekit replay`: score a trace's sequences on another backend or precision."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tracekit.cli.cluster_options import take_cluster
from tracekit.cli.replay_options import SectionedCommand, backend_options
from tracekit.cli.replay_progress import ReplayBar

if TYPE_CHECKING:
    from tracekit.replay import ReplaySummary


@click.command(
    "replay",
    cls=SectionedCommand,
    epilog="\b\nExample:\n  tracekit replay run.trace -o fp32.trace --backend hf --model ./model --dtype float32\n"
    "  tracekit diff run.trace fp32.trace\n"
    '  tracekit replay run.trace -o decode.trace --model ./model --mode decode --where "temperature = 0"\n'
    "  tracekit replay run.trace -o fp32.trace --model ./model --engine ray --address auto --num-workers 8",
)
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="Where the new trace goes.")
@click.option("--backend", default="hf", show_default=True, help="What scores: 'hf' is Hugging Face transformers.")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="The model: the folder of a checkpoint; for 'llamacpp' a .gguf file, for 'http' the served name.",
)
@click.option(
    "--where", metavar="SQL", help="Score the requests for which this is true: a condition on the view `requests`."
)
@click.option(
    "--sample", type=click.IntRange(min=1), help="Score N requests that stand for all, the same ones each time."
)
@click.option("--limit", type=click.IntRange(min=1), help="Score the first N requests only, in order of arrival.")
@click.option("--top-k", type=click.IntRange(min=1), help="Candidates to keep a token [default: as many as TRACE has].")
@click.option("--hidden", is_flag=True, help="Also keep each token's final hidden state.")
@click.option("--logits", is_flag=True, help="Also keep each token's whole row of logits.")
@click.option(
    "--free",
    type=click.Choice(["engine", "coupled"]),
    is_flag=False,
    flag_value="engine",
    help="Sample anew, with the recorded seeds and parameters (vllm). 'coupled' tells for each token which one the "
    "recorded draw's random numbers pick here (also hf, head, llamacpp): it needs a recording of Model Runner V2.",
)
@click.option(
    "--any-tokenizer",
    is_flag=True,
    help="Go on where the model's tokenizer files are not the recorded ones, e.g. saved anew.",
)
@click.option("--restart", is_flag=True, help="Throw away what an unfinished replay left, and begin anew.")
@backend_options
def command(
    trace: Path,
    out: Path,
    backend: str,
    model: Path | None,
    where: str | None,
    sample: int | None,
    limit: int | None,
    top_k: int | None,
    hidden: bool,
    logits: bool,
    free: str | None,
    any_tokenizer: bool,
    restart: bool,
    **options: Any,
) -> None:
    """Score the recorded tokens of TRACE under another backend or precision.

    Prompts and tokens are given, nothing is sampled: the result is a trace that can be compared with TRACE row by row,
    and replayed again. A replay that was killed or failed on its way goes on with the same command.
    """
    from tracekit.analysis import requests_where
    from tracekit.replay import parsed_options
    from tracekit.replay.checkpoints import named_checkpoints

    cluster = take_cluster(options)
    weights, others = options.pop("weights"), options.pop("other_options")
    settings = {
        "backend": backend,
        "only": None if where is None else requests_where(trace, where),
        "sample": sample,
        "limit": limit,
        "top_k": top_k,
        "hidden": hidden,
        "logits": logits,
        "free": free,
        "any_tokenizer": any_tokenizer,
        "restart": restart,
        "cluster": cluster,
        **{name: value for name, value in options.items() if value not in (None, ())},
        **(parsed_options(backend, others) if others else {}),
    }
    if weights and model is not None:
        raise click.UsageError("--model and --weights both name the model; leave one of them out")
    if weights and options["weights_schedule"] is None:
        for label, path in named_checkpoints(weights).items():
            _replay(trace, _out_of(out, label, len(weights)), model=path, weight_label=label, **settings)
        return
    if weights:
        settings["weights"] = weights
    _replay(trace, out, model=model, **settings)
    if options["schedule"] == "recorded":
        _tell_batches(trace, out)
    if free == "coupled":
        _tell_flips(trace, out)


def _replay(trace: Path, out: Path, **settings: Any) -> None:
    from tracekit.replay import replay

    # Ray tells of workers that it lost on standard output.
    with contextlib.redirect_stdout(sys.stderr), ReplayBar() as bar:
        summary = replay(trace, out, progress=bar.show, **settings)
    click.echo(_summary(summary), err=True)


def _out_of(out: Path, label: str, num_labels: int) -> Path:
    if "{label}" in str(out):
        return Path(str(out).replace("{label}", label))
    if num_labels > 1:
        raise click.UsageError(
            "several --weights make a trace each; name them apart by {label}, as in "
            f"-o '{out.stem}-{{label}}{out.suffix}'"
        )
    return out


def _tell_batches(trace: Path, out: Path) -> None:
    from tracekit.analysis.agreement import batch_agreement

    found = batch_agreement(trace, out)
    click.echo(
        f"{found.num_same_batch:,} of {found.num_tokens:,} tokens were sampled in a batch of the same composition, "
        f"{found.num_equal:,} raw logprobs are equal bit for bit; the view pair_batches lists them",
        err=True,
    )


def _tell_flips(trace: Path, out: Path) -> None:
    from tracekit.analysis.agreement import num_flips

    found = num_flips(trace, out)
    click.echo(
        f"{sum(found.values()):,} requests flip: {found.get('logits', 0):,} by their logits, "
        f"{found.get('random numbers', 0):,} by random numbers, {found.get(None, 0):,} without a seed to tell; "
        "the view flips lists them",
        err=True,
    )


def _summary(summary: ReplaySummary) -> str:
    text = (
        f"{summary.path}: {summary.num_tokens:,} tokens of {summary.num_sequences:,} requests scored "
        f"in {summary.seconds:.1f} s ({summary.tokens_per_second:,.0f} tokens/s), "
        f"peak memory {summary.peak_bytes / 2**30:.1f} GiB"
    )
    if summary.num_resumed_tokens:
        text += f"; {summary.num_resumed_tokens:,} of the tokens had been scored before"
    if summary.num_unscored_tokens:
        text += (
            f"; {summary.num_unscored_tokens:,} left out, as their rows or rows before them are missing in the parent"
        )
    return text
