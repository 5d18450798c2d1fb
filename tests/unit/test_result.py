"""What a query gives to Python: Arrow, pandas and Polars."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from factories import make_trace
from tracekit import Session, connect
from tracekit.errors import BackendUnavailableError

QUERY = "SELECT range::INTEGER AS i, range / 4 AS x, NULLIF(range, 1) AS n, 'r' || range AS s FROM range(3)"


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with connect(make_trace(tmp_path / "a")) as opened:
        yield opened


def test_pandas(session: Session) -> None:
    frame = session.sql(QUERY).df()
    assert frame.to_dict("list")["x"] == [0.0, 0.25, 0.5]
    assert frame["i"].dtype == "int32"
    frame.loc[0, "x"] = 7.0
    assert frame["x"].tolist() == [7.0, 0.25, 0.5]


def test_pandas_over_the_memory_of_arrow(session: Session) -> None:
    result = session.sql(QUERY)
    frame = result.df(arrow_types=True)
    assert frame["n"].dtype.pyarrow_dtype == "int64"
    assert frame["n"].isna().tolist() == [False, True, False]
    for name in ("i", "x", "s"):
        ours, theirs = (column.chunk(0).buffers() for column in (result.arrow()[name], frame[name].array._pa_array))
        assert [b and b.address for b in ours] == [b and b.address for b in theirs]


def test_polars_over_the_memory_of_arrow(session: Session) -> None:
    result = session.sql(QUERY)
    frame = result.pl()
    assert frame.rows() == [(0, 0.0, 0, "r0"), (1, 0.25, None, "r1"), (2, 0.5, 2, "r2")]
    for name in ("i", "x"):
        address = result.arrow()[name].chunk(0).buffers()[1].address
        assert frame[name].to_arrow().buffers()[1].address == address


@pytest.mark.parametrize(("method", "package"), [("df", "pandas"), ("pl", "polars")])
def test_a_missing_package_is_named(
    session: Session, method: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = f"data frames of {package} need the package '{package}', which is not installed: pip install {package}"
    with pytest.raises(BackendUnavailableError, match=message) as failure:
        getattr(session.sql(QUERY), method)()
    assert failure.value.exit_code == 3


def test_rows_may_be_taken_in_several_ways(session: Session) -> None:
    result = session.sql(QUERY)
    assert result.arrow().num_rows == len(result.df()) == result.pl().height == len(result.dicts()) == 3
