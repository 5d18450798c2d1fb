"""The command line: what it loads, prints and exits with."""

from __future__ import annotations

import importlib
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest

from factories import make_request, make_trace
from tracekit.cli.main import COMMANDS, main
from tracekit.errors import BackendUnavailableError, RecorderError
from tracekit.version import __version__

HEAVY = ("torch", "pyarrow", "vllm", "duckdb", "numpy", "rich", "transformers", "zstandard")


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four traces below the current folder: run, a replay of it, one with other prompts, and a future one."""
    monkeypatch.chdir(tmp_path)
    run = make_trace(Path("run"), requests=[make_request(external_id="0")])
    replayed = make_request(logprob=-0.75, forced=True, external_id="0")
    make_trace(Path("fp32"), requests=[replayed], role="replay", parent=run, run_id="fp32")
    make_trace(Path("other"), requests=[make_request(prompt=[1, 9, 3], external_id="0")], run_id="other")
    future = make_trace(Path("future"))
    (future / "manifest.json").write_text((future / "manifest.json").read_text().replace('"1.2"', '"2.0"'))
    Path("empty").mkdir()
    Path("file").write_text("x")


def tracekit(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracekit.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload,no-any-return]


class TestHelp:
    def test_loads_nothing_heavy(self) -> None:
        program = (
            "import sys; from tracekit.cli.main import main; code = main(['--help']); "
            f"print([name for name in {HEAVY} if name in sys.modules], code, file=sys.stderr)"
        )
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert run.stderr == "[] 0\n"

    def test_starts_at_once(self) -> None:
        def seconds() -> float:
            started = time.perf_counter()
            assert tracekit("--help").returncode == 0
            return time.perf_counter() - started

        assert min(seconds() for _ in range(5)) < 0.3

    def test_lists_every_command(self) -> None:
        shown = tracekit("--help").stdout
        for name, text in COMMANDS.items():
            assert f"  {name}" in shown
            assert text in shown

    def test_no_arguments_show_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 0
        assert capsys.readouterr().out.startswith("Usage: tracekit [OPTIONS] COMMAND")

    @pytest.mark.parametrize("name", COMMANDS)
    def test_a_command_says_what_it_does_and_ends_with_an_example(
        self, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"Usage: tracekit {name} ")
        example = shown[shown.index("  Example:\n") :].splitlines()
        assert len(example) > 1
        assert all(line.startswith("    tracekit ") for line in example[1:])

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_listed_command_is_one_file(self, name: str) -> None:
        command = importlib.import_module(f"tracekit.cli.{name}").command
        assert isinstance(command, click.Command)
        assert command.name == name

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"tracekit {__version__}\n"


BAD = [
    (["inspect", "nowhere"], "nowhere: no such trace; give the folder that `tracekit record -o` wrote"),
    (["inspect", "empty"], "empty is an empty folder, not a trace; give the folder that `tracekit record -o` wrote"),
    (["inspect", "file"], "file is a file, but a trace is a folder with a manifest.json"),
    (["inspect", "future"], f"future has trace format 2.0, this tracekit {__version__} reads 1.x; upgrade tracekit"),
    (["query", "empty", "SELECT 1"], "empty is an empty folder, not a trace;"),
    (["query", "future", "SELECT 1"], "future has trace format 2.0,"),
    (["query", "run", "SELEC 1"], 'Parser Error: syntax error at or near "SELEC"'),
    (["query", "run", "FROM token"], "Table with name token does not exist (did you mean 'tokens'?)"),
    (["query", "run", "COPY tokens TO 'x'"], "COPY is not run on a trace; only statements that read are run"),
    (["query", "run", "SELECT error('x')"], "Invalid Input Error: x"),
    (["query", "run"], "no SQL given: the arguments are A [B] SQL; see `tracekit query --help`"),
    (["query", "run", "fp32"], "no SQL given"),
    (["query", "run", "fp32", "other", "SELECT 1"], "3 traces given, at most 2 can be asked"),
    (["query", "run", "SELECT 1", "-o", "empty"], "empty is a folder; give -o a file"),
    (["query", "run", "SELECT 1", "-o", "no/x"], "no/x cannot be written: No such file or directory"),
    (["diff", "run", "nowhere"], "nowhere: no such trace;"),
    (["diff", "run", "other"], "request 'r0': the prompts differ at position 1, token 2 in A, 9 in B (3 prompt tokens"),
    (["diff", "run"], "Missing argument 'B'; see `tracekit diff --help`"),
    (["diff", "run", "fp32", "--format", "xml"], "'xml' is not one of 'table', 'json', 'csv', 'parquet', 'md'; see"),
    (["diff", "run", "fp32", "--fromat", "csv"], "No such option '--fromat'. Did you mean '--format'?"),
    (["recover", "nowhere"], "nowhere: no such trace;"),
    (["dif", "run", "fp32"], "no such command 'dif' (did you mean 'diff'?); see `tracekit --help`"),
    (["--verbose"], "No such option '--verbose'"),
]


class TestErrors:
    @pytest.mark.usefixtures("traces")
    @pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
    def test_bad_input(self, arguments: list[str], message: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        assert main(arguments) == 2
        captured = capfdbinary.readouterr()
        error = captured.err.decode()
        assert captured.out == b""
        assert error.startswith("tracekit: error: ")
        assert message in error
        assert error.count("\n") == 1

    @pytest.mark.usefixtures("traces")
    def test_no_stack_trace_from_the_program(self) -> None:
        run = tracekit("diff", "run", "other")
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
        assert "Traceback" not in run.stderr

    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (BackendUnavailableError("vllm is not\ninstalled"), 3, "vllm is not installed"),
            (RecorderError("full"), 1, "full"),
            (KeyboardInterrupt(), 130, "interrupted"),
            (click.Abort(), 130, "interrupted"),
            (PermissionError(13, "Permission denied", "x/y"), 2, "x/y: Permission denied"),
            (click.exceptions.Exit(7), 7, None),
        ],
    )
    def test_exit_codes(
        self,
        error: BaseException,
        code: int,
        message: str | None,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def fail(trace: Path) -> None:  # noqa: ARG001
            raise error

        monkeypatch.setattr("tracekit.store.recover", fail)
        assert main(["recover", "x"]) == code
        assert capsys.readouterr().err == (f"tracekit: error: {message}\n" if message else "")

    def test_text_of_a_trace_does_not_steer_the_terminal(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        evil = "\x1b[2J\x07evil"
        a = make_trace(tmp_path / "a", requests=[make_request(evil)])
        b = make_trace(tmp_path / "b", requests=[make_request(evil, prompt=[8])], role="replay", parent=a, run_id="b")
        assert main(["diff", str(a), str(b)]) == 2
        error = capsys.readouterr().err
        assert "request '\\x1b[2J\\x07evil'" in error
        assert error.strip().isprintable()


class TestOutput:
    @pytest.mark.usefixtures("traces")
    def test_diff_json(self, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        assert main(["diff", "run", "fp32", "--format", "json"]) == 0
        captured = capfdbinary.readouterr()
        found = json.loads(captured.out)
        assert captured.err == b""
        kl = found["metrics"]["processed"]["kl"]
        assert (kl["value"], kl["num_tokens"]) == (0.25, 3)

    @pytest.mark.usefixtures("traces")
    def test_diff_may_pair_by_prompt(self, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        assert main(["diff", "run", "fp32", "--align", "prompt"]) == 0
        assert b"1 request aligned by prompt" in capfdbinary.readouterr().out

    @pytest.mark.usefixtures("traces")
    def test_inspect_json(self, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        assert main(["inspect", "run", "--format", "json"]) == 0
        assert json.loads(capfdbinary.readouterr().out)["tables"]["tokens"]["rows"] == 3

    @pytest.mark.usefixtures("traces")
    def test_query_of_two_traces(self, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        assert main(["query", "run", "fp32", "SELECT d FROM pairs LIMIT 1", "--format", "csv"]) == 0
        assert capfdbinary.readouterr().out == b"d\n-0.25\n"

    @pytest.mark.usefixtures("traces")
    def test_query_from_standard_input(
        self, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("SELECT count(*) AS n\nFROM tokens;\n"))
        assert main(["query", "run", "-", "--format", "json"]) == 0
        assert json.loads(capfdbinary.readouterr().out) == [{"n": 3}]

    @pytest.mark.usefixtures("traces")
    def test_query_to_a_file(self, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        Path("out.parquet").write_text("older")
        assert main(["query", "run", "FROM tokens", "--format", "parquet", "-o", "out.parquet"]) == 0
        assert pq.read_table("out.parquet").num_rows == 3
        assert capfdbinary.readouterr() == (b"", b"")

    @pytest.mark.usefixtures("traces")
    def test_a_failed_query_leaves_the_file_as_it_was(self) -> None:
        Path("out.csv").write_text("older")
        before = sorted(Path().iterdir())
        query = "SELECT CASE WHEN range > 150000 THEN error('late') ELSE range END FROM range(200000)"
        assert main(["query", "run", query, "--format", "csv", "-o", "out.csv"]) == 2
        assert Path("out.csv").read_text() == "older"
        assert sorted(Path().iterdir()) == before

    @pytest.mark.usefixtures("traces")
    def test_parquet_into_a_pipe(self) -> None:
        command = [sys.executable, "-m", "tracekit.cli.main", "query", "run", "FROM tokens", "--format", "parquet"]
        run = subprocess.run(command, capture_output=True, timeout=60)
        assert pq.read_table(io.BytesIO(run.stdout)).num_rows == 3

    @pytest.mark.usefixtures("traces")
    def test_parquet_is_kept_off_a_terminal(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        assert main(["query", "run", "FROM tokens", "--format", "parquet"]) == 2
        assert "parquet is not written to a terminal; give -o FILE" in capsys.readouterr().err

    @pytest.mark.usefixtures("traces")
    def test_a_long_table_is_cut_and_says_so(self, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        assert main(["query", "run", "FROM range(9)", "--max-rows", "4"]) == 0
        captured = capfdbinary.readouterr()
        assert len(captured.out.splitlines()) == 6
        assert captured.err == b"tracekit: 5 more rows (--max-rows 0 shows all)\n"

    def test_recover(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = make_trace(tmp_path / "a")
        killed = "import os, sys; sys.path.insert(0, sys.argv[2]); from factories import *; "
        killed += "w = TraceWriter(sys.argv[1], run_id='run', writer='w1'); "
        killed += "w.append('tokens', make_request('r1').tokens); w.flush(); os._exit(9)"
        tests = str(Path(__file__).parents[1])
        assert subprocess.run([sys.executable, "-c", killed, str(path), tests], timeout=60).returncode == 9
        assert main(["recover", str(path)]) == 0
        assert capsys.readouterr().out == "tokens\t3\n"
        assert main(["recover", str(path)]) == 0
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", f"tracekit: {path} has nothing to recover\n")


class TestSignals:
    @pytest.mark.usefixtures("traces")
    def test_a_closed_pipe_is_quiet(self) -> None:
        command = [
            sys.executable,
            "-m",
            "tracekit.cli.main",
            "query",
            "run",
            "FROM range(1_000_000)",
            "--format",
            "csv",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert (process.stderr.read(), process.wait(60)) == (b"", 141)

    @pytest.mark.usefixtures("traces")
    def test_ctrl_c(self) -> None:
        endless = "SELECT count(*) FROM range(10_000_000) a, range(10_000_000) b WHERE a.range * b.range = 7"
        # A process started in the background may have been told to ignore the signal.
        program = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from tracekit.cli.main import main; import tracekit.analysis.session; "
            "print('ready', flush=True); sys.exit(main(sys.argv[1:]))"
        )
        command = [sys.executable, "-c", program, "query", "run", endless]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                assert process.stdout.readline() == b"ready\n"
                time.sleep(2)
                process.send_signal(signal.SIGINT)
                code = process.wait(30)
            finally:
                process.kill()
            assert (process.stderr.read(), code) == (b"tracekit: error: interrupted\n", 130)
