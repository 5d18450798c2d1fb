"""`vllm serve`, under `tracekit record` or bare: started on a free port, waited for, stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

MODEL_NAME = "served"


class Server:
    """A server; its processes end with the context.

    Args:
        model: a checkpoint folder.
        trace: the trace to make; None records nothing.
        log: the file that gets what the processes print.
        record: further options of `tracekit record`.
        serve: further options of `vllm serve`.
    """

    def __init__(
        self, model: Path | str, trace: Path | None, log: Path, record: Sequence[str] = (), serve: Sequence[str] = ()
    ) -> None:
        self.log = log
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        bin_folder = Path(sys.executable).parent
        recorder = (sys.executable, "-m", "tracekit.cli.main", "record", "-o", str(trace), *record, "--")
        self._command = [
            *(() if trace is None else recorder),
            *(str(bin_folder / "vllm"), "serve", str(model), "--port", str(self.port)),
            *("--served-model-name", MODEL_NAME, "--enforce-eager", "--max-model-len", "1024", *serve),
        ]

    def __enter__(self) -> Self:
        quiet = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command, env=quiet | os.environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self._kill()
            raise
        return self

    def stop(self, timeout: float = 60.0) -> int:
        """Asks the server to end, as a supervisor would, and returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def _wait_until_it_answers(self, timeout: float = 400.0) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.tail()}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise RuntimeError(f"the server did not answer in {timeout:.0f} s:\n{self.tail()}")

    def tail(self) -> str:
        """Returns the end of what the processes printed."""
        return self.log.read_text(errors="replace")[-4000:]

    def _kill(self) -> None:
        # All of its processes are of the session that it was started in.
        for process_id in session_processes(self.process.pid):
            try:
                os.kill(process_id, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def session_processes(session_id: int) -> list[int]:
    """Returns the processes of a session, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == session_id:
                    found.append(int(entry.name))
            except (ProcessLookupError, PermissionError):
                continue
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
