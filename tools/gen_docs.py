"""Writes the generated parts of the documentation: tables of schemas/README.md, and docs/commands.md.

python tools/gen_docs.py [--check]    with --check: writes nothing, and fails where a file is out of date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from tracekit.cli.main import cli
from tracekit.schema import Column, table, table_names

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- generated: tables -->", "<!-- end of generated: tables -->"


def format_readme() -> str:
    """Returns schemas/README.md with its tables written anew."""
    text = (ROOT / "schemas" / "README.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{_tables()}{END}{after}"


def _tables() -> str:
    return "".join(f"\n{_table(name)}" for name in table_names())


def _table(name: str) -> str:
    definition = table(name)
    merge = " A logical row is merged from partial ones." if definition.merge else ""
    key = ", ".join(f"`{column}`" for column in definition.key)
    lines = [
        f"### `{name}`",
        f"A row is {definition.row}. Key: {key}.{merge}",
        "",
        "| column | type | since | meaning |",
        "|---|---|---|---|",
        *(_row(column) for column in definition.columns),
    ]
    return "\n".join(lines) + "\n"


def _row(column: Column) -> str:
    shape = f" {column.shape}" if column.shape else ""
    required = "" if column.nullable else ", required"
    unit = f" Unit: {column.unit}." if column.unit else ""
    values = "; ".join(f"`{value}`: {meaning}" for value, meaning in (column.values or {}).items())
    known = f" Well-known values: {values}." if values else ""
    meaning = f"{column.meaning}{unit}{known}".replace("|", "\\|")
    return f"| `{column.name}` | {column.type}{shape}{required} | {column.since} | {meaning} |"


def commands() -> str:
    """Returns docs/commands.md: the help of every command."""
    texts = [_help(path, command) for path, command in _walk(cli, "tracekit", None)]
    head = "# Commands\n\nGenerated from the commands' own help by `make docs`.\n"
    return "\n".join([head, *texts])


def _walk(
    command: click.Command, name: str, parent: click.Context | None
) -> Iterator[tuple[click.Context, click.Command]]:
    settings = {**command.context_settings, "terminal_width": 100, "max_content_width": 100}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context, command
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from _walk(found, child, context)


def _help(context: click.Context, command: click.Command) -> str:
    return f"## `{context.command_path}`\n\n```\n{command.get_help(context)}\n```\n"


GENERATED: dict[str, Callable[[], str]] = {"schemas/README.md": format_readme, "docs/commands.md": commands}


def out_of_date() -> list[str]:
    """Returns the files that differ from what would be generated now."""
    return [name for name, generate in GENERATED.items() if _current(name) != generate()]


def _current(name: str) -> str | None:
    path = ROOT / name
    return path.read_text(encoding="utf-8") if path.exists() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is out of date")
    check = parser.parse_args().check
    stale = out_of_date()
    for name in stale:
        if check:
            print(f"{name} is out of date: run `make docs`", file=sys.stderr)
        else:
            (ROOT / name).write_text(GENERATED[name](), encoding="utf-8")
            print(f"wrote {name}")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
