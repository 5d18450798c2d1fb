"""Runs the shell on a terminal, or on what a pipe or a file holds."""

from __future__ import annotations

import contextlib
from typing import BinaryIO, TextIO

from tracekit.analysis import Session
from tracekit.errors import BackendUnavailableError
from tracekit.shell.commands import Quit
from tracekit.shell.interpreter import Interpreter


def run_shell(session: Session, stdin: TextIO, stdout: BinaryIO) -> None:
    """Runs until the user leaves or the input ends.

    Args:
        session: what is asked.
        stdin: a terminal, where errors are told and do not end it; anything else is read as statements up to the first
            that fails.
        stdout: where data goes.

    Raises:
        TracekitError: a statement that was not typed on a terminal failed.
        BackendUnavailableError: the package that a terminal needs is not installed.
    """
    interpreter = Interpreter(session, stdout)
    with contextlib.closing(interpreter):
        if not stdin.isatty():
            with contextlib.suppress(Quit):
                interpreter.run_all(stdin, "standard input")
            return
        try:
            from tracekit.shell.terminal import interact
        except ImportError as error:
            raise BackendUnavailableError(
                f"the shell on a terminal needs the package 'prompt-toolkit' ({error}): pip install 'tracekit[shell]'; "
                "statements from a pipe or a file need nothing"
            ) from error
        interact(interpreter)
