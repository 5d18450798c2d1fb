"""Options of commands that compare two traces: how their requests are paired, and which pass of a trainer's counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option(
        "--align",
        type=click.Choice(["request", "external", "prompt", "request_id", "external_id"]),
        metavar="[request|external|prompt]",
        help="How requests are paired: by the engine's ids, by the callers' ids and sample index, or by prompt and "
        "order of arrival. By default by request where the traces are related, else by external ids where they are "
        "unique, else by prompt.",
    ),
    click.option(
        "--partial",
        is_flag=True,
        help="Compare also where requests of one trace have no counterpart. Replays of chosen requests and trainers' "
        "traces need no such word.",
    ),
    click.option("--any-tokenizer", is_flag=True, help="Compare also where the files of the tokenizers differ."),
    click.option(
        "--policy",
        type=click.Choice(["current", "old", "reference"]),
        help="Of a trainer's trace with several passes over one request: whose logprobs [default: old, else current].",
    ),
    click.option("--trainer-step", type=int, help="And of which step [default: the first]."),
)


def alignment_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds these options to a command, named as `connect` names them."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
