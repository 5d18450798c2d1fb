"""Where the shell keeps what was typed: a file in the user's state folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory


def history_path(environment: Mapping[str, str]) -> Path:
    """Returns the file: below XDG_STATE_HOME, or ~/.local/state where that is not set or not absolute."""
    state = Path(environment.get("XDG_STATE_HOME", ""))
    folder = state if state.is_absolute() else Path.home() / ".local" / "state"
    return folder / "tracekit" / "shell_history"


def open_history(path: Path) -> tuple[History, str | None]:
    """Opens the history, for the user's eyes only, and makes it where it is missing.

    Returns:
        The history, and why nothing will be kept where the file cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError as error:
        return InMemoryHistory(), f"history is not kept: {path} cannot be written ({error.strerror})"
    return FileHistory(path), None
