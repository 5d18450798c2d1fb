"""`tracekit import`: makes traces of what a trainer already wrote."""

from __future__ import annotations

from pathlib import Path

import click

_EPILOG = """\b
Example:
  tracekit import prime-rl outputs/token_exports -o trainer.trace --rollout-out rollout.trace --temperature 1.0
  tracekit diff rollout.trace trainer.trace
  tracekit import verl rollout_data/120.jsonl -o texts.trace
"""


@click.command(name="import", epilog=_EPILOG)
@click.argument("importer", metavar="FORMAT")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="The new trace.")
@click.option(
    "--rollout-out",
    type=click.Path(path_type=Path),
    help="Where the rollout's side goes, of files that hold both sides: then -o is the trainer's.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    help="What all requests were sampled at, where files do not say it. Metrics of processed logprobs need it.",
)
def command(
    importer: str, paths: tuple[Path, ...], out: Path, rollout_out: Path | None, temperature: float | None
) -> None:
    """Make traces of files that a trainer wrote, so that it can be asked before anything was recorded.

    FORMAT is prime-rl (token exports), slime (debug dumps of rollouts and training data), trl (tables of completions)
    or verl (rollout dumps). A PATH may be a folder. What a file does not tell stays null. Prints a line for each new
    trace: its path and its role.
    """
    from tracekit.trainers.importers import import_files

    summary = import_files(importer, paths, out, rollout_out=rollout_out, temperature=temperature)
    for path, role in ((summary.rollout, "record"), (summary.trainer, "trainer")):
        if path is not None:
            click.echo(f"{path}\t{role}")
    click.echo(f"tracekit: {summary.num_sequences} sequences, {summary.num_tokens} tokens", err=True)
    if summary.num_tokens and summary.temperature_unknown:
        click.echo(
            "tracekit: no sampling temperature is known, so metrics of processed logprobs count no token; "
            "give --temperature",
            err=True,
        )
