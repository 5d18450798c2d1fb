"""The `tracekit` command: finds the file of a command, runs it, prints errors and sets the exit code.

A command is one module of this package whose attribute `command` is a `click.Command`; it is imported only when it is
called. Commands raise, and never print errors: `main` is the one place that does.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from tracekit.errors import TracekitError, nearest
from tracekit.version import __version__

# What `tracekit --help` shows, without importing any command.
COMMANDS = {
    "record": "Run a command that starts vLLM, and record what its engine samples.",
    "replay": "Score a trace's sequences on another backend or precision.",
    "import": "Make traces of what a trainer already wrote.",
    "diff": "Compare two traces: alignment, metrics, first divergences.",
    "explain": "Name the causes of their differences, with evidence and shares.",
    "bisect": "Find which settings take one trace's scores to another's.",
    "query": "Ask one or two traces in SQL.",
    "gate": "Hold two traces' metrics to requirements, for CI.",
    "sql": "List, explain or export the SQL library.",
    "shell": "Ask them interactively, statement after statement.",
    "inspect": "Show what a trace holds.",
    "demo": "See it at work on a pair of traces that comes with it.",
    "compact": "Join the small parts of a trace into few, sorted, in buckets.",
    "recover": "Turn the journals of a killed recording into Parquet parts.",
}

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
# What a shell reports for a program that ended by SIGPIPE.
EXIT_BROKEN_PIPE = 141

_COMPLETE_VARIABLE = "_TRACEKIT_COMPLETE"


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"tracekit.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise click.UsageError(f"no such command '{args[0]}'{nearest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n  tracekit record -o run.trace -- python my_rollout.py\n"
    "  tracekit replay run.trace -o fp32.trace --backend hf --model ./model --dtype float32\n"
    "  tracekit diff run.trace fp32.trace",
)
@click.version_option(__version__, prog_name="tracekit", message="%(prog)s %(version)s")
def cli() -> None:
    """Record, replay and query LLM inference: find where two engines' tokens diverge, and why."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        args: the arguments after the program's name; those of this process by default.

    Returns:
        0 fine; 1 a gate failed; 2 bad usage or input; 3 a backend is not available; 130 interrupted;
        141 the reader of standard output went away.
    """
    if _COMPLETE_VARIABLE in os.environ:
        cli.main(prog_name="tracekit")
    given = list(sys.argv[1:] if args is None else args)
    try:
        with cli.make_context("tracekit", given or ["--help"]) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.ClickException as error:
        _print_error(error.format_message().rstrip(".") + _where_to_look(error))
        return EXIT_USAGE
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, KeyboardInterrupt):
        _print_error("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more at exit: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except TracekitError as error:
        _print_error(str(error))
        return error.exit_code
    except OSError as error:
        _print_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return EXIT_USAGE
    return 0


def _where_to_look(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"; see `{context.command_path} --help`" if context else ""


def _print_error(message: str) -> None:
    line = " ".join(message.split())
    # A message may quote a trace, which must not steer the terminal.
    shown = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)
    click.echo(f"tracekit: error: {shown}", err=True)


if __name__ == "__main__":
    sys.exit(main())
