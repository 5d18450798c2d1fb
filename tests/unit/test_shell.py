"""The shell on pipes and files: what it prints, where, and how it ends."""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from factories import make_request, make_trace
from tracekit.cli.main import main


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_trace(Path("run"), requests=[make_request()])
    make_trace(
        Path("fp32"), requests=[make_request(logprob=-0.75, forced=True)], role="replay", parent=run, run_id="fp32"
    )


class Shell:
    """Runs the command on a text as standard input."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[bytes]) -> None:
        self._monkeypatch = monkeypatch
        self._capture = capture

    def __call__(self, text: str, *arguments: str, code: int = 0) -> tuple[str, str]:
        self._monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert main(["shell", *(arguments or ("run", "fp32"))]) == code
        captured = self._capture.readouterr()
        return captured.out.decode(), captured.err.decode()


@pytest.fixture
def shell(
    traces: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> Shell:
    return Shell(monkeypatch, capfdbinary)


class TestScripts:
    def test_statements_run_in_order(self, shell: Shell) -> None:
        out, err = shell("SELECT d FROM pairs\n LIMIT 1;\nSELECT 2 AS x")
        assert out == "     d\n ─────\n -0.25\n x\n ─\n 2\n"
        assert err == ""

    def test_one_trace(self, shell: Shell) -> None:
        assert shell(".mode csv\nSELECT count(*) AS n FROM tokens;", "run")[0] == "n\n3\n"

    def test_the_first_error_ends_it_and_says_where(self, shell: Shell) -> None:
        out, err = shell(".mode csv\nSELECT 1 AS x;\n\nSELEC\n 2;\nSELECT 3;", code=2)
        assert out == "x\n1\n"
        assert err.startswith('tracekit: error: standard input, line 4: Parser Error: syntax error at or near "SELEC"')
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("FROM pair;", "line 1: Catalog Error: Table with name pair does not exist (did you mean 'pairs'?)"),
            ("COPY pairs TO 'x';", "COPY is not run on a trace"),
            (".hlep", "no command '.hlep' (did you mean '.help'?); .help lists them"),
            (".help pars", "no view or macro 'pars' (did you mean 'pairs'?)"),
            (".mode parquet", ".mode: no format 'parquet'"),
            (".mode cvs", ".mode: no format 'cvs' (did you mean 'csv'?)"),
            (".timer yes", ".timer: 'yes' is neither 'on' nor 'off'"),
            (".rows -1", ".rows: '-1' is no number of rows; give one, or 'all'"),
            (".read", ".read needs a file of statements"),
            (".read nowhere.sql", "nowhere.sql cannot be read: No such file or directory"),
            (".output no/file", "no/file cannot be written: No such file or directory"),
            (".output two files", ".output takes [FILE], 2 words given; put one in quotes"),
            (".output 'a", "a quote is not closed"),
        ],
    )
    def test_errors_are_one_line(self, shell: Shell, text: str, message: str) -> None:
        out, err = shell(text, code=2)
        assert out == ""
        assert message in err
        assert err.count("\n") == 1

    def test_quit_ends_it(self, shell: Shell) -> None:
        assert shell(".mode csv\nSELECT 1 AS x;\n.quit\nSELECT 2;")[0] == "x\n1\n"

    def test_a_reply_comes_before_the_next_question(self, traces: None) -> None:  # noqa: ARG002
        command = [sys.executable, "-m", "tracekit.cli.main", "shell", "run"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(".mode csv\nSELECT 1 AS x;\n")
            process.stdin.flush()
            assert [process.stdout.readline() for _ in range(2)] == ["x\n", "1\n"]
            process.stdin.close()
            assert process.wait(60) == 0


class TestCommands:
    @pytest.mark.parametrize(
        ("mode", "expected"),
        [
            ("table", " x   y\n ─────\n 1   a\n"),
            ("csv", "x,y\n1,a\n"),
            ("json", '[\n  {"x": 1, "y": "a"}\n]\n'),
            ("markdown", "| x | y |\n| ---: | --- |\n| 1 | a |\n"),
            ("md", "| x | y |\n| ---: | --- |\n| 1 | a |\n"),
        ],
    )
    def test_mode(self, shell: Shell, mode: str, expected: str) -> None:
        assert shell(f".mode {mode}\nSELECT 1 AS x, 'a' AS y;")[0] == expected

    def test_timer_is_no_data(self, shell: Shell) -> None:
        out, err = shell(".mode csv\n.timer on\nSELECT 1 AS x;\n.timer off\nSELECT 1 AS x;")
        assert out == "x\n1\nx\n1\n"
        assert [part.isdecimal() for part in err.removesuffix(" s\n").split(".")] == [True, True]

    def test_rows_of_a_table(self, shell: Shell) -> None:
        out, err = shell(".rows 2\nFROM range(3);\nFROM range(2);\n.rows all\nFROM range(1500);")
        lines = [line.strip() for line in out.splitlines()]
        expected = ["0", "1", "0", "1", *map(str, range(1500))]
        assert [line for line in lines if line.isdecimal()] == expected
        assert err == "the first 2 rows; there are more: .rows all shows them, .output FILE takes them\n"

    def test_other_formats_hold_all_rows(self, shell: Shell) -> None:
        out, err = shell(".rows 2\n.mode csv\nFROM range(1500);")
        assert out == "range\n" + "".join(f"{i}\n" for i in range(1500))
        assert err == ""

    def test_output(self, shell: Shell) -> None:
        Path("out.csv").write_text("older and longer than what comes")
        out, _ = shell(".mode csv\n.output out.csv\nSELECT 1 AS x;\nSELECT 2 AS x;\n.output\nSELECT 3 AS x;")
        assert Path("out.csv").read_text() == "x\n1\nx\n2\n"
        assert out == "x\n3\n"

    def test_read(self, shell: Shell) -> None:
        Path("a b.sql").write_text("-- a file\nSELECT 1 AS x;\n.mode json\nSELECT 2 AS y")
        assert shell(".mode csv\n.read 'a b.sql'\nSELECT 3 AS z;")[0] == ('x\n1\n[\n  {"y": 2}\n]\n[\n  {"z": 3}\n]\n')

    def test_an_error_in_a_file_names_its_line(self, shell: Shell) -> None:
        Path("bad.sql").write_text("SELECT 1;\nSELECT x;\n")
        err = shell("\n.read bad.sql", code=2)[1]
        assert "standard input, line 2: bad.sql, line 2: Binder Error" in err

    def test_a_file_that_reads_itself(self, shell: Shell) -> None:
        Path("me.sql").write_text(".read me.sql\n")
        err = shell(".read me.sql", code=2)[1]
        assert "me.sql: files read each other 16 deep; does one read itself?" in err
        assert err.count("\n") == 1


class TestHelp:
    def test_lists_the_library_by_module(self, shell: Shell) -> None:
        out, _ = shell(".help")
        lines = [line.strip() for line in out.splitlines()]
        assert lines.index("alignment") < lines.index("metrics") < lines.index("prelude")
        for name, comment in [
            ("pairs", "Positions that both traces delivered"),
            ("k3(d)", "exp(d) - 1 - d for a log ratio"),
            ("a.tokens, b.tokens", "Delivered tokens: output_index < num_output_tokens"),
            (".help [NAME]", "Lists views and macros"),
        ]:
            assert [line for line in lines if line.startswith(name) and comment in line], name

    def test_explains_a_view_with_its_columns(self, shell: Shell) -> None:
        out, _ = shell(".help pairs")
        assert out.startswith("view pairs (module alignment/pairs)\nPositions that both traces delivered")
        rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in out.splitlines()[5:]}
        assert rows["d"][0] == "DOUBLE"
        assert rows["d"][1].startswith("b_logprob - a_logprob in nat, of raw logprobs.")
        assert rows["a_top_logits"][0] == "FLOAT[]"

    @pytest.mark.parametrize("name", ["a.tokens", "tokens", "TOKENS"])
    def test_a_table_of_two_traces(self, shell: Shell, name: str) -> None:
        assert shell(f".help {name}")[0].startswith("view a.tokens (module prelude/tables)\nDelivered tokens")

    def test_explains_a_macro_and_a_command(self, shell: Shell) -> None:
        out, _ = shell(".help k3\n.help .mode")
        assert out.startswith("macro k3(d) (module prelude/arithmetic)\nexp(d) - 1 - d")
        assert out.endswith(".mode [FORMAT]: How rows are written: table, csv, json, md (markdown).\n")


def run_stand_in(
    folder: Path, program: str, code: str, given: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command on a program that is a piece of Python; `given` is its standard input."""
    stand_in = folder / program
    folder.mkdir(exist_ok=True)
    stand_in.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n')
    stand_in.chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "tracekit.cli.main", "shell", *arguments, "--cli", program]
    return subprocess.run(command, input=given, capture_output=True, text=True, env=env, timeout=60)


class TestPrograms:
    def test_one_that_is_not_installed(self, shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
        err = shell("", "run", "--cli", "harlequin", code=3)[1]
        assert err.startswith("tracekit: error: the program 'harlequin' is not installed: pip install harlequin;")
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        ("program", "options"),
        [("duckdb", ["-readonly"]), ("harlequin", ["--adapter", "duckdb", "--read-only"])],
    )
    def test_a_program_gets_all_that_a_session_has(
        self,
        traces: None,  # noqa: ARG002
        program: str,
        options: list[str],
        tmp_path: Path,
    ) -> None:
        """A stand-in for the program asks the database it is given in a plain DuckDB, as the real one does."""
        code = "import sys, duckdb, json; c = duckdb.connect(sys.argv[-1], read_only=True); "
        code += "print(json.dumps([sys.argv[1:-1], c.sql(sys.stdin.read()).fetchall()])); sys.exit(5)"
        query = "SELECT a.token_id, b.logprob, d FROM pairs JOIN a.tokens AS a USING (output_index) "
        query += "JOIN b.tokens AS b USING (output_index) ORDER BY ALL"
        run = run_stand_in(tmp_path / "bin", program, code, query, "run", "fp32")
        assert (run.returncode, run.stderr) == (5, "")
        assert json.loads(run.stdout) == [options, [[10, -0.75, -0.25], [11, -0.75, -0.25], [12, -0.75, -0.25]]]

    def test_rows_in_journals_are_seen(self, tmp_path: Path) -> None:
        make_trace(tmp_path / "live", sealed=False)
        code = "import sys, duckdb; print(duckdb.connect(sys.argv[-1]).sql('FROM tokens').fetchall().__len__())"
        run = run_stand_in(tmp_path / "bin", "duckdb", code, "", str(tmp_path / "live"))
        assert (run.returncode, run.stdout, run.stderr) == (0, "3\n", "")

    def test_options_of_the_session(self, traces: None, tmp_path: Path) -> None:  # noqa: ARG002
        make_trace(Path("part"), requests=[make_request("other", prompt=[9]), make_request()], run_id="part")
        code = "import sys, duckdb; print(duckdb.connect(sys.argv[-1]).sql('SELECT count(*) FROM pairs').fetchall())"
        run = run_stand_in(tmp_path / "bin", "duckdb", code, "", "run", "part")
        assert (run.returncode, run.stdout) == (2, "")
        assert "has no counterpart" in run.stderr
        run = run_stand_in(tmp_path / "bin", "duckdb", code, "", "run", "part", "--partial")
        assert (run.returncode, run.stdout, run.stderr) == (0, "[(3,)]\n", "")

    def test_duckdbs_own_program(self, traces: None, tmp_path: Path) -> None:  # noqa: ARG002
        """The real one, which brings a DuckDB of its own, older than that of the sessions."""
        statements = tmp_path / "statements.sql"
        statements.write_text(
            ".mode csv\n.headers off\n"
            "SELECT count(*), sum(d) FROM pairs;\n"
            "SELECT value FROM metrics WHERE basis = 'raw' AND name = 'kl';\n"
            "SELECT round(k3(0.5), 10);\n"
            "SELECT num_tokens FROM metric_intervals WHERE basis = 'raw' AND name = 'kl';\n"
            "SELECT comment IS NOT NULL FROM duckdb_views() WHERE view_name = 'pairs';\n"
        )
        command = [sys.executable, "-m", "tracekit.cli.main", "shell", "run", "fp32", "--cli", "duckdb"]
        with statements.open() as file:
            run = subprocess.run(command, stdin=file, capture_output=True, text=True, timeout=60)
        expected = ["3,-0.75", "0.25", f"{math.exp(0.5) - 1.5:.10f}", "3", "true"]
        assert (run.returncode, run.stdout.split(), run.stderr) == (0, expected, "")
