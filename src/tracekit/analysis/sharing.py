"""A comparison in shares: what takes a look at every token is measured bucket by bucket, and put together again.

Buckets of compacted traces hold whole requests, and equal prompts are in equal buckets; so whatever is said of a
request is said by the share that holds it. Requests are few: pairing, proof and figures are made from their sums in one
place, by the same SQL as ever, and only the order in which totals are added up differs from a comparison in one piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import duckdb
import pyarrow as pa

from tracekit import schema
from tracekit.analysis import library
from tracekit.analysis.pairing import Pairing
from tracekit.errors import ConfigError
from tracekit.limits import Limits
from tracekit.store import Trace
from tracekit.store.compaction import is_bucketed
from tracekit.store.layout import EMPTY_WRITER, Bucket, Segment

# What a share is asked: the table it gives, and the query.
MEASURED: Mapping[str, str] = {
    "a_keys": "FROM a._keys",
    "b_keys": "FROM b._keys",
    "forks": library.module("sharing/forks_measured"),
    "parts": "FROM _parts",
    "tied_flips": "FROM _tied_flips",
}
# Where only requests are looked at, to learn the method.
UNSEEN: Mapping[str, str] = {
    "_outputs": "FROM _find_outputs WITH NO DATA",
    "_delivered": "FROM _find_delivered WITH NO DATA",
}
# The library's tables, from what shares gave.
TAKEN: Mapping[str, str] = {
    "_forks": library.module("sharing/forks_taken"),
    "_parts": "FROM _shared_parts",
    "_tied_flips": "FROM _shared_tied_flips",
}


@dataclass(frozen=True)
class Share:
    """A part of both traces: the buckets whose keys begin alike.

    Attributes:
        number: which of them, from 0.
        num_shares: how many there are, a power of two.
    """

    number: int
    num_shares: int

    def holds(self, bucket: Bucket) -> bool:
        """Tells whether a bucket is in this share.

        Raises:
            ConfigError: it is in several.
        """
        if bucket.num_buckets % self.num_shares:
            raise ConfigError(f"{bucket.num_buckets} buckets do not make {self.num_shares} shares")
        return bucket.bucket * self.num_shares // bucket.num_buckets == self.number

    def of(self, table: str, parts: Iterable[Path]) -> list[Path]:
        """Returns those of a table's part files that this share reads: all where rows belong to no request."""
        if not is_bucketed(table):
            return list(parts)
        buckets = ((path, _bucket_of(table, path)) for path in parts)
        return [path for path, bucket in buckets if bucket is None or self.holds(bucket)]


@dataclass(frozen=True)
class Comparing:
    """What is compared, and how.

    Attributes:
        a, b: the traces.
        pairing: how their requests are paired.
        limits: of each process that works on it.
    """

    a: Trace
    b: Trace
    pairing: Pairing
    limits: Limits


class Measuring(Protocol):
    """Whoever measures elsewhere what takes a look at every token."""

    def __call__(self, method: str) -> Mapping[str, pa.Table]:
        """Returns the tables of `MEASURED`, over all requests, which are paired by this method."""

    def cancel(self) -> None:
        """Has a call in another thread end early, with an error."""


def most_shares(traces: Iterable[Trace]) -> int:
    """Returns how many shares can be made of traces: as many as the one with the fewest buckets has.

    Raises:
        ConfigError: a trace is not compacted, or was written to since.
    """
    return min(_num_buckets(trace) for trace in traces)


def _num_buckets(trace: Trace) -> int:
    """Returns how many buckets the requests of a trace are in; each of its tables may have more or fewer."""
    numbers = []
    for table in filter(is_bucketed, schema.table_names()):
        snapshot = trace.snapshot(table)
        segments = [segment for path in snapshot.parts if (segment := Segment.of(table, path)) is not None]
        written = [segment for segment in segments if segment.writer != EMPTY_WRITER]
        buckets = [Bucket.of(segment) for segment in written]
        if snapshot.journal_rows.num_rows or None in buckets:
            raise ConfigError(
                f"trace {trace.path} has rows of table '{table}' outside of buckets, so it cannot be shared out; run "
                f"`tracekit compact {trace.path}` first"
            )
        numbers += [bucket.num_buckets for bucket in buckets if bucket is not None]
    return min(numbers, default=1)


def _bucket_of(table: str, path: Path) -> Bucket | None:
    segment = Segment.of(table, path)
    return None if segment is None else Bucket.of(segment)


def together(measured: Iterable[Mapping[str, pa.Table]]) -> dict[str, pa.Table]:
    """Returns the tables of all shares as one."""
    found = list(measured)
    return {name: pa.concat_tables([tables[name] for tables in found]) for name in MEASURED}


def take(connection: duckdb.DuckDBPyConnection, measured: Mapping[str, pa.Table]) -> None:
    """Puts what shares measured into a connection: the keys of both sides, and what `TAKEN` reads."""
    for name, rows in measured.items():
        connection.register("_given", rows)
        connection.execute(f"CREATE TABLE main._shared_{name} AS FROM _given")
        connection.unregister("_given")
    for side in ("a", "b"):
        connection.execute(f"CREATE OR REPLACE TABLE {side}._keys AS FROM main._shared_{side}_keys")
