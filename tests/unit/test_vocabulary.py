"""Texts of token ids, from a small tokenizer made here."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models

from factories import make_request, make_trace
from tracekit.analysis import connect
from tracekit.cli.main import main
from tracekit.errors import ModelError

WORDS = ["<unk>", "the", "cat", "sat", "it's"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    vocabulary = {word: token_id for token_id, word in enumerate(WORDS)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_ids_become_texts(tmp_path: Path, tokenizer: Path) -> None:
    trace = make_trace(tmp_path / "trace", requests=[make_request("r", token_ids=[2, 4, 3])])
    with connect(trace, tokenizer=tokenizer) as session:
        tokens = session.sql("SELECT token_text(token_id) AS text FROM tokens ORDER BY output_index").rows()
        assert [row[0] for row in tokens] == ["cat", "it's", "sat"]
        assert session.sql("SELECT token_texts([1, 3, 99])").rows() == [(["the", "sat", None],)]
        assert session.sql("SELECT text FROM vocabulary ORDER BY token_id").rows() == [(word,) for word in WORDS]
        commented = "SELECT count(*) FROM duckdb_functions() WHERE function_name LIKE 'token_text%' AND comment <> ''"
        assert session.sql(commented).rows() == [(2,)]


def test_two_traces_share_one_vocabulary(tmp_path: Path, tokenizer: Path) -> None:
    requests = [make_request("r", token_ids=[2, 4])]
    a = make_trace(tmp_path / "a", requests=requests)
    b = make_trace(tmp_path / "b", requests=requests)
    with connect(a, b, tokenizer=tokenizer / "tokenizer.json") as session:
        rows = session.sql("SELECT token_text(token_id) FROM pairs ORDER BY output_index").rows()
        assert rows == [("cat",), ("it's",)]


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_what_is_no_tokenizer_is_refused(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = make_trace(tmp_path / "trace", requests=[make_request("r")])
    folder = tmp_path / "model"
    folder.mkdir()
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="tokenizer"):
        connect(trace, tokenizer=folder)
    assert main(["query", str(trace), "SELECT 1", "--tokenizer", str(folder)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_table_of_texts_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    trace = make_trace(tmp_path / "trace", requests=[make_request("r", token_ids=[4, 2])])
    texts = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"text": ["it's", "cat", "<unk>"], "token_id": [4, 2, 0]}), texts)
    with connect(trace, tokenizer=texts) as session:
        tokens = session.sql("SELECT token_text(token_id) FROM tokens ORDER BY output_index").rows()
        assert tokens == [("it's",), ("cat",)]
        assert session.sql("SELECT token_texts([0, 1, 2, 5])").rows() == [(["<unk>", None, "cat", None],)]


@pytest.mark.parametrize(
    "content", [{"token_id": [1]}, {"token_id": ["a"], "text": ["b"]}, {"token_id": [1], "text": [2]}, None]
)
def test_what_is_no_table_of_texts_is_refused(content: dict[str, list[object]] | None, tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "trace", requests=[make_request("r")])
    path = tmp_path / "texts.parquet"
    if content is not None:
        pq.write_table(pa.table(content), path)
    with pytest.raises(ModelError, match=r"texts\.parquet cannot be read as a table of texts .* token_id \(integers\)"):
        connect(trace, tokenizer=path)
