"""The shell on a terminal: lines are edited, completed and remembered, and errors do not end it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import completion_is_selected, has_focus
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from prompt_toolkit.output import create_output
from pygments.lexers.sql import SqlLexer

from tracekit.errors import TracekitError
from tracekit.report.values import printable
from tracekit.shell.commands import Quit
from tracekit.shell.completion import NameCompleter
from tracekit.shell.history import history_path, open_history
from tracekit.shell.statements import is_complete, pieces_of
from tracekit.version import __version__

if TYPE_CHECKING:
    from tracekit.analysis import Session
    from tracekit.shell.interpreter import Interpreter

_PROMPT = "tracekit> "
_CONTINUED = "     ...> "


def interact(interpreter: Interpreter) -> None:
    """Reads and runs until the user leaves.

    Ctrl-C ends a query that runs, else throws away what was typed; Ctrl-D on an empty line, and `.quit`, leave.
    """
    history, fault = open_history(history_path(os.environ))
    interpreter.tell(_greeting(interpreter.session))
    if fault:
        interpreter.tell(fault)
    prompt: PromptSession[str] = PromptSession(
        _PROMPT,
        multiline=True,
        prompt_continuation=_CONTINUED,
        history=history,
        completer=NameCompleter(interpreter),
        complete_while_typing=False,
        lexer=PygmentsLexer(SqlLexer),
        key_bindings=_keys(),
        # Standard output may be a file, which gets data only.
        output=create_output(always_prefer_tty=True),
    )
    while True:
        try:
            text = prompt.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if not _run(interpreter, text):
            return


def _run(interpreter: Interpreter, text: str) -> bool:
    """Runs what was typed; tells whether the shell goes on."""
    try:
        for piece in pieces_of([text]):
            interpreter.run(piece)
    except Quit:
        return False
    except KeyboardInterrupt:
        interpreter.tell("interrupted")
    except TracekitError as error:
        # A message may quote a trace, which must not steer the terminal.
        interpreter.tell(f"error: {printable(' '.join(str(error).split()))}")
    return True


def _keys() -> KeyBindings:
    keys = KeyBindings()

    # Elsewhere, as in a search of the history, Enter keeps its meaning.
    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if completion_is_selected():
            buffer.complete_state = None
        elif is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    return keys


def _greeting(session: Session) -> str:
    traces = f"A is {session.a.path}" + (f", B is {session.b.path}" if session.b else "")
    names = "a.tokens, b.tokens, pairs, …" if session.b else "tokens, requests, …"
    return f"tracekit {__version__}: {traces}\nSQL ends with ';' ({names}); .help lists the library, .quit leaves."
