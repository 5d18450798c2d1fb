"""Which bucket a request belongs to: equal prompts, equal bucket, in every trace."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tracekit.fingerprint import prompt_hash
from tracekit.store.conforming import unreadable
from tracekit.store.reader import Snapshot

MAX_BITS = 14
_COLUMNS = ("run_id", "request_id", "prompt_hash", "prompt_token_ids")


def key_bits(text: str) -> int:
    """Returns the first 32 bits of the MD5 of a bucket key; its first k bits are its bucket among 2^k."""
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[:4], "big")


class RequestKeys:
    """The bucket keys of a trace's requests: the prompt's hash where it is known, else the request's id.

    Args:
        requests: the table `requests`, journals included.

    Raises:
        TraceFormatError: a part cannot be read.
    """

    def __init__(self, requests: Snapshot) -> None:
        self._bits: dict[tuple[str, str], int] = {}
        for path in requests.parts:
            for rows in _read(path):
                self._add(rows)
        self._add(requests.journal_rows.select(_COLUMNS))

    def bits(self, run_id: str, request_id: str) -> int:
        """Returns the first 32 bits of a request's key."""
        found = self._bits.get((run_id, request_id))
        return key_bits(request_id) if found is None else found

    def _add(self, rows: pa.Table) -> None:
        hashes = rows.column("prompt_hash").to_pylist()
        keys = zip(rows.column("run_id").to_pylist(), rows.column("request_id").to_pylist(), strict=True)
        for index, (key, hashed) in enumerate(zip(keys, hashes, strict=True)):
            if key in self._bits:
                continue
            if hashed is None:
                ids = rows.column("prompt_token_ids")[index].as_py()
                with contextlib.suppress(OverflowError, TypeError):  # not ids: as if unknown
                    hashed = None if ids is None else prompt_hash(ids)
            if hashed is not None:
                self._bits[key] = key_bits(hashed)


def _read(path: Path) -> list[pa.Table]:
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in _COLUMNS if name in file.schema_arrow.names]
            rows = [pa.Table.from_batches([batch]) for batch in file.iter_batches(8192, columns=names)]
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
    missing = [name for name in _COLUMNS if name not in names]
    return [_with_nulls(piece, missing) for piece in rows]


def _with_nulls(rows: pa.Table, missing: list[str]) -> pa.Table:
    for name in missing:
        rows = rows.append_column(name, pa.nulls(rows.num_rows))
    return rows
