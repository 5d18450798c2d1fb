"""The engine's process: started in an interpreter of its own, spoken to in JSON over a socket."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tracekit.errors import BackendUnavailableError, ConfigError, ModelError, TracekitError

WORKER = "tracekit.replay.backends.vllm.worker"
_SECONDS_TO_END = 20.0

_KINDS: Mapping[str, type[TracekitError]] = {
    "config": ConfigError,
    "model": ModelError,
    "unavailable": BackendUnavailableError,
}
_TELLING = re.compile(r"^(?:\[[^]]*\] |\S* )*?((?:[A-Za-z_.]+(?:Error|Exception|Interrupt)): .+)$")


class EngineProcess:
    """A vLLM that waits for requests.

    Args:
        python: its interpreter; by default the one that runs this.
        environment: of the process.
        log: a file for what it prints.

    Raises:
        ConfigError: there is no such interpreter.
    """

    def __init__(self, python: str | None, environment: Mapping[str, str], log: Path) -> None:
        self.python = python or sys.executable
        self._log = log
        path = shutil.which(self.python)
        if path is None:
            raise ConfigError(
                f"--python {self.python}: no such interpreter; name the python of an environment with vLLM"
            )
        ours, theirs = socket.socketpair()
        with theirs, log.open("wb") as output:
            self._process = subprocess.Popen(
                [path, "-P", "-m", WORKER, str(theirs.fileno())],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a message and returns the answer to it.

        Raises:
            TracekitError: what the answer tells of, or the process ended.
        """
        try:
            self._connection.send_bytes(json.dumps(message).encode())
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise BackendUnavailableError(self._why_it_ended()) from None
        if "failed" in answer:
            kind = _KINDS.get(answer["failed"], BackendUnavailableError)
            raise kind(answer["message"].replace("{python}", self.python).replace("{log}", str(self._log)))
        return answer

    def _why_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_END)
        code = self._process.returncode
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in reversed(lines):
            if match := re.search(r"No module named '?([\w.]+)", line):
                return (
                    f"{self.python} has no module '{match[1].partition('.')[0]}'; name an interpreter that has vLLM "
                    f"and tracekit (install tracekit there: {self.python} -m pip install tracekit)"
                )
        told = next((match[1] for line in reversed(lines) if (match := _TELLING.match(line.strip()))), None)
        ended = "ended" if code is None else f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
        why = "" if told is None else f": {told[:300]}"
        return f"the engine of {self.python} {ended}{why}; its output is in {self._log}"

    def close(self) -> None:
        """Ends the process and those that it started."""
        self._connection.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also what it left behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
