"""Writes the new parts of one table, which no reader sees yet."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from tracekit.store.compaction.buckets import RequestKeys, key_bits
from tracekit.store.compaction.plan import Sources
from tracekit.store.compaction.progress import Counter
from tracekit.store.compaction.reading import estimated_bytes, read_pieces
from tracekit.store.compaction.shuffle import Ints, Shuffle
from tracekit.store.compaction.sorting import sorted_rows
from tracekit.store.compaction.writing import GROUP_BYTES, write_bucket
from tracekit.store.conforming import united_schema
from tracekit.store.current import first_free_segment
from tracekit.store.layout import Bucket, Segment

NUM_BUCKETS_KEY = b"tracekit.num_buckets"
BUCKET_KEY = b"tracekit.bucket"
_MAX_PARTITIONS = 1 << 14


@dataclass(frozen=True)
class Budget:
    """What a compaction may use.

    Attributes:
        memory_bytes: Arrow bytes in all; what surrounds them comes on top.
        threads: how many buckets are written side by side.
        temp_dir: where the rows are dealt out; about as many bytes as they take in memory, compressed.
    """

    memory_bytes: int
    threads: int
    temp_dir: Path

    @property
    def buffer_bytes(self) -> int:
        return self.memory_bytes // 8

    @property
    def most_bytes_of_partition(self) -> int:
        # A partition is in memory twice while it is sorted.
        return self.memory_bytes // (4 * self.threads)


def new_parts(
    root: Path, sources: Sources, keys: RequestKeys, bits: int, budget: Budget, counter: Counter
) -> dict[Segment, Path]:
    """Deals a table out into 2^bits buckets, sorts each, and writes a part of it.

    Returns:
        By segment, the file in which it stands.

    Raises:
        TraceFormatError: a part cannot be read.
        OSError: the disk is full.
    """
    schema = united_schema(sources.table, sources.schemas.values())
    sub_bits = 0
    while (estimated_bytes(sources, schema) >> (bits + sub_bits)) * 2 > budget.most_bytes_of_partition:
        if 1 << (bits + sub_bits) >= _MAX_PARTITIONS:
            break
        sub_bits += 1
    with Shuffle(budget.temp_dir, schema, 1 << (bits + sub_bits), budget.buffer_bytes) as shuffle:
        for rows in read_pieces(sources, schema):
            shuffle.add(rows, _partitions(rows, keys, bits, sub_bits))
            counter.add(rows.num_rows)
        shuffle.flush()

        def bucket_rows(bucket: int) -> Iterator[pa.Table]:
            for partition in range(bucket << sub_bits, (bucket + 1) << sub_bits):
                yield from sorted_rows(shuffle, partition, GROUP_BYTES // 2, budget.most_bytes_of_partition)

        return _write(root, sources.table, schema, 1 << bits, budget.threads, counter, bucket_rows)


def joined_part(root: Path, sources: Sources, counter: Counter) -> dict[Segment, Path]:
    """Writes one part of all rows in the order of writing: for tables whose rows belong to no request."""
    schema = united_schema(sources.table, sources.schemas.values())

    def rows(_: int) -> Iterator[pa.Table]:
        for piece in read_pieces(sources, schema):
            counter.add(piece.num_rows)
            yield piece

    return _write(root, sources.table, schema, 1, 1, counter, rows)


def _partitions(rows: pa.Table, keys: RequestKeys, bits: int, sub_bits: int) -> Ints:
    runs, run_codes = _codes(rows.column("run_id"))
    requests, request_codes = _codes(rows.column("request_id"))
    pairs, places = np.unique(run_codes * len(requests) + request_codes, return_inverse=True)
    found = np.empty(len(pairs), np.int64)
    for place, pair in enumerate(pairs.tolist()):
        run_id, request_id = runs[pair // len(requests)], requests[pair % len(requests)]
        bucket = keys.bits(run_id, request_id) >> (32 - bits)
        # Requests of one prompt are told apart, or a trace of one prompt would be one partition.
        found[place] = bucket << sub_bits | key_bits(request_id) >> (32 - sub_bits)
    return found[places]


def _codes(column: pa.ChunkedArray) -> tuple[list[str], Ints]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _write(
    root: Path,
    table: str,
    schema: pa.Schema,
    num_buckets: int,
    threads: int,
    counter: Counter,
    bucket_rows: Callable[[int], Iterator[pa.Table]],
) -> dict[Segment, Path]:
    cancelled = threading.Event()

    def write(number: int) -> tuple[Segment, Path | None]:
        segment = first_free_segment(root, table, Bucket(num_buckets, number).writer)
        own = {NUM_BUCKETS_KEY: str(num_buckets).encode(), BUCKET_KEY: str(number).encode()}
        rows = _counted(bucket_rows(number), counter)
        return segment, write_bucket(root, segment, schema.with_metadata({**schema.metadata, **own}), rows, cancelled)

    with ThreadPoolExecutor(threads, thread_name_prefix="tracekit-compact") as pool:
        tasks = [pool.submit(write, number) for number in range(num_buckets)]
        try:
            written = [task.result() for task in tasks]
        except BaseException:
            cancelled.set()
            for task in tasks:
                task.cancel()
            pool.shutdown()
            for task in tasks:
                with contextlib.suppress(BaseException):  # what failed left nothing; the first error is raised below
                    _discard(task.result()[1])
            raise
    return {segment: path for segment, path in written if path is not None}


def _counted(chunks: Iterator[pa.Table], counter: Counter) -> Iterator[pa.Table]:
    for chunk in chunks:
        yield chunk
        counter.add(chunk.num_rows)


def _discard(path: Path | None) -> None:
    if path is not None:
        path.unlink(missing_ok=True)
