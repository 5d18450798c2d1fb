"""`tracekit record`: runs a command that starts vLLM, and records it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

_EPILOG = """\b
Settings that no option gives are taken from the environment (TRACEKIT_RECORD_<FIELD>),
then from the file, then from the engine's additional_config={"tracekit": {...}}.

\b
Example:
  tracekit record -o run.trace -- python rollout.py
  tracekit record -o serve.trace --top-k 50 --share 0.01 -- vllm serve my-model
  tracekit record -o run.trace --hidden --where "temperature > 0" -- python rollout.py
"""


@click.command(name="record", epilog=_EPILOG, context_settings={"allow_interspersed_args": False})
@click.option("-o", "--output", "trace", type=click.Path(path_type=Path), help="Trace directory to make.")
@click.option("--append", is_flag=True, default=None, help="Go on with the trace where it exists already.")
@click.option(
    "--config", "file", type=click.Path(path_type=Path), help="TOML file of settings, one 'name = value' a line."
)
@click.option("--top-k", type=int, help="Candidates kept for each token; 0 keeps none.  [default: 20]")
@click.option("--hidden", is_flag=True, default=None, help="Keep the final hidden states too.")
@click.option("--logits", is_flag=True, default=None, help="Keep whole rows of raw logits too.")
@click.option(
    "--checksums", is_flag=True, default=None, help="Keep checksums of head and embedding when weights change."
)
@click.option("--share", type=float, help="Record this share of trajectories, groups or prompts, 0 to 1.  [default: 1]")
@click.option("--first", type=int, help="Record the first N requests of each engine only.")
@click.option("--where", help="Record requests of which this is true, e.g. 'temperature > 0 and top_p < 1'.")
@click.option("--strict", is_flag=True, default=None, help="Let failures of the recorder stop the engine (for tests).")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True, metavar="-- COMMAND...")
def command(file: Path | None, command: tuple[str, ...], **options: Any) -> None:
    """Run COMMAND with the recorder attached to every vLLM engine it starts.

    The engine computes and samples what it would without the recorder. The exit code is the command's.
    """
    from tracekit.errors import TracekitError
    from tracekit.record import RecordConfig, record_command
    from tracekit.record.session import resolve
    from tracekit.store import Trace

    given = resolve(options, os.environ, file, source="tracekit record")
    config = RecordConfig(**given)
    code = record_command(command, config, given)
    try:
        trace = Trace(config.trace)
        num_requests = len(trace.read("requests", ["request_id"]).column(0).unique())
        click.echo(
            f"tracekit: {trace.num_rows('tokens')} tokens of {num_requests} requests in {config.trace}", err=True
        )
    except (TracekitError, OSError) as error:
        # The command's own result is what the caller waits for.
        click.echo(f"tracekit: {config.trace} cannot be read: {error}", err=True)
    sys.exit(code)
