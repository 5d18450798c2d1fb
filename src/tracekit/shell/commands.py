"""The dot-commands of the shell: what each is called, takes, says in `.help`, and does."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracekit.errors import ConfigError, InputError, nearest
from tracekit.report.formats.base import BINARY, format_names
from tracekit.shell.explanation import explain, overview

if TYPE_CHECKING:
    from tracekit.shell.interpreter import Interpreter

_MARKDOWN = "markdown"
_SWITCH = {"on": True, "off": False}


class Quit(Exception):  # noqa: N818
    """The user is done."""


@dataclass(frozen=True)
class Command:
    """One dot-command.

    Attributes:
        name: with its dot.
        argument: what it takes, as help shows it.
        text: what it does.
        run: does it.
        values: what the argument may be, where that is a list.
        is_path: whether the argument is a file.
    """

    name: str
    argument: str
    text: str
    run: Callable[[Interpreter, str | None], None]
    values: Callable[[], Sequence[str]] = tuple
    is_path: bool = False


def modes() -> list[str]:
    """Returns what `.mode` takes: the formats that a terminal can show, Markdown by its whole name too."""
    names = [name for name in format_names() if name not in BINARY]
    return [*names, _MARKDOWN]


def run(interpreter: Interpreter, line: str) -> None:
    """Runs one line.

    Raises:
        ConfigError: there is no such command, or it does not take this.
    """
    try:
        name, *arguments = shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"{line.split()[0]}: a quote is not closed in '{line}'; close it") from error
    command = COMMANDS.get(name)
    if command is None:
        raise ConfigError(f"no command '{name}'{nearest(name, COMMANDS)}; .help lists them")
    if len(arguments) > 1:
        raise ConfigError(
            f"{name} takes {command.argument or 'nothing'}, {len(arguments)} words given; put one in quotes"
        )
    command.run(interpreter, arguments[0] if arguments else None)


def _help(interpreter: Interpreter, argument: str | None) -> None:
    with interpreter.sink() as sink:
        if argument is None:
            lines = [(f"{command.name} {command.argument}".strip(), command.text) for command in _ALL]
            sink.write(overview(interpreter.catalogue, lines, sink.isatty()))
        elif argument in COMMANDS:
            command = COMMANDS[argument]
            sink.write(f"{command.name} {command.argument}: {command.text}\n".encode())
        else:
            sink.write(explain(interpreter.catalogue.find(argument), sink.isatty()))


def _mode(interpreter: Interpreter, argument: str | None) -> None:
    if argument is None:
        interpreter.tell(interpreter.settings.mode)
        return
    if argument not in modes():
        raise ConfigError(f".mode: no format '{argument}'{nearest(argument, modes())}")
    interpreter.settings.mode = "md" if argument == _MARKDOWN else argument


def _timer(interpreter: Interpreter, argument: str | None) -> None:
    interpreter.settings.timer = _switched(".timer", argument, interpreter.settings.timer)


def _pager(interpreter: Interpreter, argument: str | None) -> None:
    interpreter.settings.pager = _switched(".pager", argument, interpreter.settings.pager)


def _rows(interpreter: Interpreter, argument: str | None) -> None:
    if argument is None:
        interpreter.tell(str(interpreter.settings.max_rows or "all"))
    elif argument == "all":
        interpreter.settings.max_rows = None
    elif argument.isdecimal() and int(argument):
        interpreter.settings.max_rows = int(argument)
    else:
        raise ConfigError(f".rows: '{argument}' is no number of rows; give one, or 'all'")


def _output(interpreter: Interpreter, argument: str | None) -> None:
    interpreter.redirect(None if argument is None else Path(argument).expanduser())


def _read(interpreter: Interpreter, argument: str | None) -> None:
    if argument is None:
        raise ConfigError(".read needs a file of statements: .read FILE.sql")
    path = Path(argument).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    interpreter.run_all(text.splitlines(keepends=True), str(path))


def _quit(interpreter: Interpreter, argument: str | None) -> None:  # noqa: ARG001
    raise Quit


def _switched(name: str, argument: str | None, now: bool) -> bool:
    if argument is None:
        return not now
    if argument not in _SWITCH:
        raise ConfigError(f"{name}: '{argument}' is neither 'on' nor 'off'")
    return _SWITCH[argument]


_ALL = (
    Command(".help", "[NAME]", "Lists views and macros, or explains one and its columns.", _help),
    Command(".mode", "[FORMAT]", "How rows are written: table, csv, json, md (markdown).", _mode, modes),
    Command(".rows", "[N|all]", "How many rows a table shows.", _rows, lambda: ("all",)),
    Command(".timer", "[on|off]", "Tells how long each statement took.", _timer, lambda: tuple(_SWITCH)),
    Command(".pager", "[on|off]", "Shows what is longer than the terminal in $PAGER.", _pager, lambda: tuple(_SWITCH)),
    Command(".output", "[FILE]", "Writes rows to a file; without one, to the terminal again.", _output, is_path=True),
    Command(".read", "FILE", "Runs the statements and commands of a file.", _read, is_path=True),
    Command(".quit", "", "Leaves; so do .exit and Ctrl-D.", _quit),
)
COMMANDS = {command.name: command for command in _ALL} | {".exit": Command(".exit", "", "Leaves.", _quit)}
