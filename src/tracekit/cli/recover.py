"""`tracekit recover`: turns the journals of a killed recording into Parquet parts."""

from __future__ import annotations

from pathlib import Path

import click

_EPILOG = """\b
Example:
  tracekit recover run.trace
"""


@click.command(name="recover", epilog=_EPILOG)
@click.argument("trace", type=click.Path(path_type=Path))
def command(trace: Path) -> None:
    """Turn the journals that killed processes left in TRACE into Parquet parts.

    tracekit reads journals as they are; other tools see parts only. Journals of processes that still run are left
    alone. May be repeated. Prints a line for each table: its name and how many rows were recovered.
    """
    from tracekit.store import recover

    recovered = recover(trace)
    for name, num_rows in recovered.items():
        click.echo(f"{name}\t{num_rows}")
    if not recovered:
        click.echo(f"tracekit: {trace} has nothing to recover", err=True)
