"""The shell on a real pseudo-terminal: completion, history, Ctrl-C, paging, folding."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from factories import make_request, make_trace
from terminal import Terminal

ENDLESS = "SELECT count(*) FROM range(10_000_000) a, range(10_000_000) b WHERE a.range * b.range = 7;"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Opens shells on two traces; what they keep is below the test's own folder."""
    run = make_trace(tmp_path / "run", requests=[make_request()])
    make_trace(tmp_path / "fp32", requests=[make_request(logprob=-0.75)], role="replay", parent=run, run_id="b")
    command = [sys.executable, "-m", "tracekit.cli.main", "shell", "run", "fp32"]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "PAGER": "less", "LESS": "-R"}
    with ExitStack() as stack:

        def open_one(**options: object) -> Terminal:
            terminal = stack.enter_context(Terminal(command, env=env, cwd=tmp_path, **options))  # type: ignore[arg-type]
            terminal.wait_for("tracekit>")
            return terminal

        yield open_one


def test_a_statement_of_several_lines(opened: Callable[..., Terminal]) -> None:
    terminal = opened()
    terminal.press("SELECT ';' AS x,", "Enter")
    terminal.wait_for("...>")
    terminal.press("40 + 2 AS y;", "Enter")
    text = terminal.wait_for("tracekit>", count=2)
    assert re.search(r"^ x +y$", text, re.MULTILINE)
    assert re.search(r"^ ; +42$", text, re.MULTILINE)
    terminal.press("C-d")
    assert terminal.wait_end() == 0


def test_tab_completes_views_columns_keywords_and_commands(opened: Callable[..., Terminal]) -> None:
    terminal = opened()
    terminal.press("SELECT d FROM first_d", "Tab")
    terminal.wait_for("FROM first_divergence")
    terminal.press("C-c")
    terminal.press("FROM pairs AS p WHERE p.b_reported_l", "Tab")
    terminal.wait_for("p.b_reported_logprob")
    terminal.press("C-c", "FROM a.outc", "Tab")
    terminal.wait_for("FROM a.outcomes")
    terminal.press("C-c", "SUMMAR", "Tab")
    terminal.wait_for("SUMMARIZE")
    terminal.press("C-c", ".hel", "Tab")
    # The first line of the shell names .help as well.
    terminal.wait_for("tracekit> .help")
    terminal.press(" fli", "Tab")
    terminal.wait_for(".help flips")
    terminal.press("Enter")
    terminal.wait_for("view flips (module alignment/flips)")


def test_tab_lists_what_there_is_with_comments(opened: Callable[..., Terminal]) -> None:
    terminal = opened()
    terminal.press("FROM b.tokens", "Tab")
    screen = terminal.wait_for("Every token row")
    assert "b.tokens_all" in screen
    # Enter takes what is chosen, and runs nothing.
    terminal.press("Tab")
    terminal.wait_for("FROM b.tokens")
    terminal.press("Enter", ";")
    terminal.wait_for("FROM b.tokens;")
    assert terminal.text().count("tracekit>") == 1


def test_history_outlives_the_shell(opened: Callable[..., Terminal], tmp_path: Path) -> None:
    terminal = opened()
    terminal.press("SELECT 'first' AS x;", "Enter")
    terminal.wait_for("tracekit>", count=2)
    terminal.press("SELECT", "Enter", "'second' AS x;", "Enter")
    terminal.wait_for("tracekit>", count=3)
    terminal.press(".quit", "Enter")
    assert terminal.wait_end() == 0
    kept = tmp_path / "state" / "tracekit" / "shell_history"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600

    terminal = opened()
    terminal.press("Up", "Up")
    terminal.wait_for("'second' AS x;")
    terminal.press("C-c", "C-r", "fir")
    terminal.wait_for("SELECT 'first' AS x;")
    terminal.press("Enter")
    terminal.settle(0.5)
    terminal.press("Enter")
    terminal.wait_for("\n first\n")


def test_ctrl_c_ends_a_query_and_not_the_shell(opened: Callable[..., Terminal]) -> None:
    terminal = opened()
    terminal.press(".timer on", "Enter")
    terminal.wait_for("tracekit>", count=2)
    terminal.press(ENDLESS, "Enter")
    terminal.wait_for("= 7;")
    # The query begins when the line is read; pressed earlier, it would throw the line away.
    for _ in range(100):
        terminal.press("C-c")
        if "interrupted" in terminal.settle(0.3):
            break
    terminal.wait_for("interrupted")
    terminal.press("SELECT 6 * 7 AS answer;", "Enter")
    terminal.wait_for("\n     42\n")
    assert terminal.process.poll() is None


def test_errors_are_one_line_and_do_not_end_it(opened: Callable[..., Terminal]) -> None:
    terminal = opened()
    terminal.press("SELEC 1;", "Enter")
    terminal.wait_for('error: Parser Error: syntax error at or near "SELEC"')
    terminal.press("FROM nowhere;", "Enter")
    terminal.wait_for("error: Catalog Error: Table with name nowhere does not exist")
    terminal.press("DROP VIEW pairs;", "Enter")
    terminal.wait_for("error: DROP is not run on a trace")
    terminal.press("SELECT 1 + 1 AS two;", "Enter")
    terminal.wait_for("\n   2\n")


def test_long_results_are_paged(opened: Callable[..., Terminal]) -> None:
    terminal = opened(lines=20)
    terminal.press("FROM range(500, 600);", "Enter")
    terminal.wait_for("\n   500\n")
    assert "599" not in terminal.settle(1)
    # less: to the end, and out.
    terminal.press("G")
    terminal.wait_for("\n   599\n")
    terminal.press("q")
    terminal.wait_for("tracekit>", count=2)
    terminal.press(".pager off", "Enter")
    terminal.wait_for("tracekit>", count=3)
    terminal.press("FROM range(700, 800);", "Enter")
    terminal.wait_for("\n   799\n")
    terminal.wait_for("tracekit>", count=4)


def test_leaving_the_pager_early_ends_the_rest(opened: Callable[..., Terminal]) -> None:
    terminal = opened(lines=20)
    terminal.press(".mode csv", "Enter")
    terminal.wait_for("tracekit>", count=2)
    terminal.press("FROM range(1_000_000_000_000);", "Enter")
    terminal.wait_for("\n15\n")
    terminal.press("q")
    terminal.wait_for("tracekit>", count=3)
    terminal.press("SELECT 42 AS x;", "Enter")
    terminal.wait_for("\n42\n")
    assert "error" not in terminal.text()


def test_rows_that_are_too_wide_become_records(opened: Callable[..., Terminal]) -> None:
    terminal = opened(lines=120, columns=80)
    terminal.press("FROM pairs LIMIT 1;", "Enter")
    text = terminal.wait_for("tracekit>", count=2)
    assert re.search(r"^ row 1$", text, re.MULTILINE)
    assert re.search(r"^ d +-0\.25$", text, re.MULTILINE)
    assert re.search(r"^ b_token_id +1[012]$", text, re.MULTILINE)


def test_without_the_package_it_says_what_to_install(opened: Callable[..., Terminal], tmp_path: Path) -> None:
    del opened
    code = "import sys; sys.modules['prompt_toolkit'] = None; from tracekit.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "shell", "run"]
    with Terminal(command, env=os.environ, cwd=tmp_path, columns=300) as terminal:
        assert terminal.wait_end() == 3
        assert "pip install 'tracekit[shell]'" in terminal.text()


def test_a_history_that_cannot_be_kept_is_told(opened: Callable[..., Terminal], tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    terminal = opened()
    text = terminal.wait_for("history is not kept:")
    assert "shell_history cannot be written" in re.sub(r"\n", "", text)
    terminal.press("SELECT 6 * 7 AS answer;", "Enter")
    terminal.wait_for("\n     42\n")
