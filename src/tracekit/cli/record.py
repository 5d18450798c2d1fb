"""`tracekit record`: runs a command that starts vLLM, and records it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

_EPILOG = """\b
Example:
  tracekit record -o run.trace -- python rollout.py
  tracekit record -o serve.trace --top-k 50 -- vllm serve my-model
"""


@click.command(name="record", epilog=_EPILOG, context_settings={"ignore_unknown_options": True})
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Trace directory to make.")
@click.option("--top-k", default=20, show_default=True, help="Candidates kept for each token; 0 keeps none.")
@click.option("--strict", is_flag=True, help="Let failures of the recorder stop the engine (for tests).")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True, metavar="-- COMMAND...")
def command(output: Path, top_k: int, strict: bool, command: tuple[str, ...]) -> None:
    """Run COMMAND with the recorder attached to every vLLM engine it starts.

    The engine computes and samples what it would without the recorder. The exit code is the command's.
    """
    from tracekit.errors import TracekitError
    from tracekit.record import RecordConfig, record_command
    from tracekit.store import Trace

    config = RecordConfig(trace=str(output.absolute()), top_k=top_k, strict=strict)
    code = record_command(command, config)
    try:
        trace = Trace(output)
        num_requests = len(trace.read("requests", ["request_id"]).column(0).unique())
        click.echo(f"tracekit: {trace.num_rows('tokens')} tokens of {num_requests} requests in {output}", err=True)
    except (TracekitError, OSError) as error:
        # The command's own result is what the caller waits for.
        click.echo(f"tracekit: {output} cannot be read: {error}", err=True)
    sys.exit(code)
