"""The text of token ids, from a tokenizer's own file or from a table of texts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tracekit.errors import BackendUnavailableError, ModelError


def read_vocabulary(tokenizer: Path) -> pa.Table:
    """Returns (token_id, text) of every token, each decoded by itself.

    A token that holds part of a character only shows as U+FFFD.

    Args:
        tokenizer: a tokenizer.json, or a folder that holds one; or a Parquet file with the columns token_id and text,
            which needs no package, and in which ids may be missing: their texts are null.

    Raises:
        ModelError: there is no such file, or it is not a tokenizer.
        BackendUnavailableError: the package `tokenizers` is not installed.
    """
    if tokenizer.suffix == ".parquet":
        return _stored(tokenizer)
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise BackendUnavailableError(
            "token texts need the package 'tokenizers', which is not installed: pip install 'tracekit[hf]'"
        ) from error
    path = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if not path.is_file():
        raise ModelError(f"{tokenizer}: no tokenizer.json there; give the model's folder, or the file itself")
    try:
        loaded = Tokenizer.from_file(str(path))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{path} cannot be read as a tokenizer ({reason}); give another one") from error
    ids = range(max(loaded.get_vocab(with_added_tokens=True).values()) + 1)
    texts = loaded.decode_batch([[token_id] for token_id in ids], skip_special_tokens=False)
    return pa.table({"token_id": pa.array(ids, pa.int32()), "text": pa.array(texts, pa.string())})


def _stored(path: Path) -> pa.Table:
    try:
        found = pq.read_table(path, columns=["token_id", "text"])
        known = dict(zip(*(found.column(name).to_pylist() for name in ("token_id", "text")), strict=True))
        ids = range(max(known, default=-1) + 1)
        return pa.table({"token_id": pa.array(ids, pa.int32()), "text": pa.array(map(known.get, ids), pa.string())})
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{path} cannot be read as a table of texts ({reason}); give a Parquet file with the columns token_id "
            "(integers) and text"
        ) from error
