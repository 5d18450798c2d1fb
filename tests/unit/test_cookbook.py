"""The questions of docs/cookbook.md, asked of the real traces that come with the package."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tracekit import Session, connect, demo

PAGE = Path(__file__).parents[2] / "docs" / "cookbook.md"
_BLOCK = re.compile(r"^### (.+?)\n\n```sql\n(.*?)```", re.MULTILINE | re.DOTALL)

# Of a trace without trajectories, updates, trainers or a part left out, these have nothing to say.
EMPTY = {
    "Does the prompt of each turn begin with the turn before it?",
    "Which requests could not be compared, and why?",
}


def blocks(section: str) -> list[tuple[str, str]]:
    return _BLOCK.findall(PAGE.read_text(encoding="utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0])


ONE, TWO = blocks("One trace"), blocks("Two traces")


@pytest.fixture(scope="module")
def one() -> Iterator[Session]:
    with connect(demo.ROLLOUT) as session:
        yield session


@pytest.fixture(scope="module")
def two() -> Iterator[Session]:
    with connect(demo.ROLLOUT, demo.FP32) as session:
        yield session


def test_there_are_enough() -> None:
    assert len(ONE) + len(TWO) >= 25
    assert len({title for title, _ in ONE + TWO}) == len(ONE) + len(TWO)


@pytest.mark.parametrize(("title", "query"), ONE, ids=[title for title, _ in ONE])
def test_one_trace(one: Session, title: str, query: str) -> None:
    assert bool(one.sql(query).rows()) == (title not in EMPTY)


@pytest.mark.parametrize(("title", "query"), TWO, ids=[title for title, _ in TWO])
def test_two_traces(two: Session, title: str, query: str) -> None:
    assert bool(two.sql(query).rows()) == (title not in EMPTY)


def answer(session: Session, title: str) -> list[tuple[object, ...]]:
    return session.sql(dict(ONE + TWO)[title]).rows()


def test_the_grid_of_bf16_shows(two: Session) -> None:
    ((a_on_grid, b_on_grid),) = answer(two, "Were logits rounded to bf16 on one side?")
    assert a_on_grid == 1
    assert b_on_grid < 0.1


def test_rows_belong_together(two: Session) -> None:
    ((at_same, at_next, at_last),) = answer(two, "Are rows misaligned by one?")
    rows = two.sql("SELECT a_logprob, b_logprob FROM pairs").rows()
    assert at_same == pytest.approx(np.corrcoef(np.asarray(rows, np.float64).T)[0, 1])
    assert at_same > 0.99 > max(at_next, at_last)


def test_the_temperature_is_the_same(two: Session) -> None:
    ((slope, r2, _),) = answer(two, "Is it another temperature?")
    assert slope == pytest.approx(1, abs=0.01)
    assert r2 > 0.99
