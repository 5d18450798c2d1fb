"""Compaction: the same rows in few sorted parts, bucketed alike in every trace; what it leaves alone and refuses."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compacted import content, files, many_parts
from factories import make_request, make_trace
from tracekit import connect
from tracekit.errors import ConfigError, InputError, TraceFormatError
from tracekit.fingerprint import prompt_hash
from tracekit.limits import Limits
from tracekit.schema import arrow_schema, table_names
from tracekit.store import Trace, TraceWriter, compact, create_trace, recover

BUCKETED = ("requests", "outcomes", "tokens", "logits", "hidden", "routes")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_parts(tmp_path_factory.mktemp("made") / "a.trace")


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "a.trace"))


def parts(root: Path, table: str) -> list[Path]:
    return sorted(path for path in (root / table).glob("*.parquet") if not path.name.startswith("empty"))


def expected_bucket(key: str, num_buckets: int) -> int:
    """The first bits of an MD5, by its digits in binary."""
    digits = bin(int("1" + hashlib.md5(key.encode()).hexdigest(), 16))[3:]
    return int("0" + digits[: num_buckets.bit_length() - 1], 2)


class TestRows:
    @pytest.mark.parametrize("num_buckets", [1, 4])
    def test_stay_as_they_are_in_few_parts(self, root: Path, num_buckets: int) -> None:
        before = content(root)
        assert all(len(parts(root, table)) > 8 for table in table_names())
        done = compact(root, num_buckets=num_buckets)
        assert content(root) == before
        for table in table_names():
            found = parts(root, table)
            assert 0 < len(found) <= (num_buckets if table in BUCKETED else 1)
            # What any tool that reads Parquet sees.
            assert sum(pq.read_metadata(path).num_rows for path in found) == len(before[table])
        assert done.num_rows == sum(map(len, before.values()))
        assert done.parts_after == sum(len(parts(root, table)) for table in table_names()) < done.parts_before
        assert done.bytes_after == sum(path.stat().st_size for table in table_names() for path in parts(root, table))

    def test_floats_are_exact_copies(self, tmp_path: Path) -> None:
        bits = np.random.default_rng(1).integers(0, 2**32, (40, 50), dtype=np.uint32)
        root = tmp_path / "a.trace"
        create_trace(root, "record")
        with TraceWriter(root, run_id="r", writer="w") as writer:
            for index in range(40):
                fixed = {"request_id": "q", "position": [39 - index], "source_dtype": "float32"}
                writer.append("logits", {**fixed, "logits": bits[index : index + 1].view(np.float32)})
                writer.seal()
        compact(root)
        (part,) = parts(root, "logits")
        found = pq.read_table(part).column("logits").combine_chunks().values.to_numpy().view(np.uint32)
        np.testing.assert_array_equal(found.reshape(40, 50), bits[::-1])

    def test_are_sorted_by_request_and_position(self, root: Path) -> None:
        compact(root, num_buckets=2)
        for table in ("tokens", "logits", "hidden", "routes"):
            for part in parts(root, table):
                rows = pq.read_table(part, columns=["run_id", "request_id", "position"]).to_pylist()
                places = defaultdict(list)
                for row in rows:
                    places[row["run_id"], row["request_id"]].append(row["position"])
                # Each request stands in one piece.
                assert [(row["run_id"], row["request_id"]) for row in rows] == [
                    key for key, of_key in places.items() for _ in of_key
                ]
                assert all(of_key == sorted(of_key) for of_key in places.values())

    def test_partial_rows_keep_their_meaning(self, tmp_path: Path) -> None:
        """Writers that disagree: the first in the order of writing counts, before and after."""
        root = tmp_path / "a.trace"
        create_trace(root, "record")
        chance = random.Random(3)
        for name in ("b", "a", "c"):
            with TraceWriter(root, run_id="r", writer=name) as writer:
                for number in range(30):
                    known = {column: f"{name}{number}" for column in ("external_id", "lora") if chance.random() < 0.5}
                    writer.append("requests", {"request_id": [f"q{number % 10}"], **known})
                    writer.seal()
        query = "SELECT request_id, external_id, lora FROM requests ORDER BY request_id"
        with connect(root) as session:
            before = session.sql(query).rows()
        compact(root, num_buckets=4)
        with connect(root) as session:
            assert session.sql(query).rows() == before
        assert len({row[1] for row in before}) == 10

    def test_a_newer_minor_versions_columns_are_kept(self, root: Path) -> None:
        schema = arrow_schema("events")
        newer = pa.schema(
            [*schema, pa.field("novelty", pa.int32())], {**schema.metadata, b"tracekit.format_version": b"1.9"}
        )
        rows = pa.Table.from_pylist([{"run_id": "r", "time_ns": 1, "kind": "paused", "novelty": 3}], newer)
        pq.write_table(rows, root / "events" / "n-000000.parquet")
        compact(root)
        (part,) = parts(root, "events")
        found = pq.read_table(part)
        assert sorted(value for value in found.column("novelty").to_pylist() if value is not None) == [3]
        assert pq.read_schema(part).metadata[b"tracekit.format_version"] == b"1.9"

    def test_parts_are_written_as_the_store_writes_them(self, root: Path) -> None:
        compact(root, num_buckets=4)
        for part in parts(root, "tokens"):
            metadata = pq.read_metadata(part)
            bucket = int(part.name.split("-")[2])
            assert {key: value for key, value in metadata.metadata.items() if key != b"ARROW:schema"} == {
                b"tracekit.format_version": b"1.2",
                b"tracekit.table": b"tokens",
                b"tracekit.num_buckets": b"4",
                b"tracekit.bucket": str(bucket).encode(),
            }
            assert pq.read_schema(part).field("logprob").metadata[b"unit"] == b"nat"
            group = metadata.row_group(0)
            for index in range(metadata.num_columns):
                column = group.column(index)
                assert column.compression == "ZSTD"
                if column.physical_type == "FLOAT":
                    assert "BYTE_STREAM_SPLIT" in column.encodings
                    assert not any("DICTIONARY" in encoding for encoding in column.encodings)


class TestBuckets:
    def test_are_the_first_bits_of_the_prompt_hash(self, tmp_path: Path) -> None:
        """With the prompt's hash, with its ids alone, and the request's id where neither is known."""
        requests = [make_request(f"q{number}", prompt=[number // 2, 5]) for number in range(20)]
        requests += [make_request(f"ids{number}", prompt=[number, 5], prompt_hash=None) for number in range(20)]
        requests += [make_request(f"unknown{number}", prompt=None) for number in range(20)]
        keys = {f"q{number}": prompt_hash([number // 2, 5]) for number in range(20)}
        keys |= {f"ids{number}": prompt_hash([number, 5]) for number in range(20)}
        keys |= {f"unknown{number}": f"unknown{number}" for number in range(20)}
        root = make_trace(tmp_path / "a", requests=requests)
        compact(root, num_buckets=16)
        for table in ("requests", "outcomes", "tokens"):
            found = {
                request_id: (int(part.name.split("-")[1]), int(part.name.split("-")[2]))
                for part in parts(root, table)
                for request_id in pq.read_table(part).column("request_id").to_pylist()
            }
            assert found == {name: (16, expected_bucket(key, 16)) for name, key in keys.items()}
        assert len({bucket for _, bucket in found.values()}) > 8

    def test_halve_with_twice_as_many(self, tmp_path: Path) -> None:
        root = make_trace(tmp_path / "a", requests=[make_request(f"q{n}", prompt=[n]) for n in range(50)])
        buckets = {}
        for num_buckets in (8, 4):
            compact(root, num_buckets=num_buckets)
            for part in parts(root, "tokens"):
                assert part.name.startswith(f"compact-{num_buckets:04d}-")
                for request_id in pq.read_table(part).column("request_id").to_pylist():
                    buckets[num_buckets, request_id] = int(part.name.split("-")[2])
        assert all(buckets[8, f"q{n}"] // 2 == buckets[4, f"q{n}"] for n in range(50))

    @pytest.mark.parametrize("num_buckets", [0, 3, -4, 1 << 15])
    def test_are_a_power_of_two(self, root: Path, num_buckets: int) -> None:
        before = files(root)
        with pytest.raises(ConfigError, match=rf"{num_buckets} buckets: give a power of two, at most 16,384"):
            compact(root, num_buckets=num_buckets)
        assert files(root) == before

    def test_that_a_trace_has_are_kept_by_default(self, root: Path) -> None:
        assert compact(root).num_buckets == 1
        assert compact(root, num_buckets=4).num_buckets == 4
        assert compact(root).num_buckets == 4


class TestAgain:
    def test_nothing_to_gain_changes_nothing(self, root: Path) -> None:
        compact(root, num_buckets=4)
        before = {name: (root / name).stat().st_ino for name in files(root)}
        done = compact(root)
        assert (done.num_rows, done.parts_before) == (0, done.parts_after)
        assert {name: (root / name).stat().st_ino for name in files(root)} == before

    def test_parts_that_came_later_are_joined(self, root: Path) -> None:
        compact(root, num_buckets=4)
        with TraceWriter(root, run_id="later", writer="w0") as writer:
            for number in range(5):
                writer.append("outcomes", {"request_id": [f"new{number}"], "num_output_tokens": [number]})
                writer.seal()
        before = content(root)
        assert len(parts(root, "outcomes")) > 5
        unchanged = [path.name for path in parts(root, "tokens")]
        compact(root)
        assert content(root) == before
        assert {path.name.split("-")[3] for path in parts(root, "outcomes")} <= {"000000.parquet", "000001.parquet"}
        assert len(parts(root, "outcomes")) <= 4
        assert [path.name for path in parts(root, "tokens")] == unchanged

    def test_a_trace_without_its_journals_folder(self, root: Path) -> None:
        before = content(root)
        shutil.rmtree(root / "journal")
        compact(root)
        assert content(root) == before
        assert not (root / "journal").exists()


class TestLivingWriter:
    def test_is_left_alone(self, root: Path) -> None:
        writer = TraceWriter(root, run_id="r", writer="living", part_bytes=1 << 30)
        for time_ns in range(3):
            writer.append("events", {"time_ns": [time_ns], "kind": "paused"})
            writer.seal()
        writer.append("events", {"time_ns": [3], "kind": "paused"})
        writer.flush()
        unfinished = root / "events" / ".living-000003.parquet.1"
        unfinished.write_bytes(b"PAR1 half")
        before = content(root)
        compact(root)
        assert content(root) == before
        assert (root / "journal" / "living.lease").exists()
        assert (root / "journal" / "events" / "living-000003.arrows.zst").exists()
        assert unfinished.exists()
        assert not (root / "events" / "living-000002.parquet").exists()
        writer.append("events", {"time_ns": [4], "kind": "paused"})
        writer.close()
        assert (root / "events" / "living-000003.parquet").exists()
        times = [row["time_ns"] for row in Trace(root).read("events").to_pylist() if row["run_id"] == "r"]
        assert sorted(times) == [0, 1, 2, 3, 4]

    def test_part_whose_journal_still_stands_is_left(self, root: Path) -> None:
        writer = TraceWriter(root, run_id="r", writer="living")
        writer.append("events", {"time_ns": [1], "kind": "paused"})
        writer.flush()
        journal = root / "journal" / "events" / "living-000000.arrows.zst"
        rows = journal.read_bytes()
        writer.seal()
        journal.write_bytes(rows)  # as between the part's rename and the journal's removal
        before = content(root)
        compact(root)
        assert (root / "events" / "living-000000.parquet").exists()
        assert content(root) == before
        writer.close()

    def test_journals_of_dead_writers_are_taken_cut_ones_too(self, root: Path) -> None:
        for number, cut in enumerate((0, 5, 40)):
            writer = TraceWriter(root, run_id="r", writer=f"dead{number}")
            for time_ns in range(6):
                writer.append("events", {"time_ns": [time_ns], "kind": "paused", "attributes": "x" * 50})
                writer.flush()
            writer._lease._forget()  # what a killed process leaves
            journal = root / "journal" / "events" / f"dead{number}-000000.arrows.zst"
            journal.write_bytes(journal.read_bytes()[: -cut or None])
        before = content(root)
        compact(root)
        assert content(root) == before
        assert len(parts(root, "events")) == 1
        assert not list((root / "journal").rglob("*.zst"))

    def test_names_are_not_used_twice(self, root: Path) -> None:
        """A writer whose parts all went may begin at 0 again, but not while a compaction still names them."""
        before = content(root)
        with connect(root) as session:
            compact(root, patience_seconds=0)
            assert [name for name in files(root) if name.endswith("compaction.json")]
            with TraceWriter(root, run_id="r", writer="w0") as writer:
                writer.append("events", {"time_ns": [7], "kind": "resumed"})
            assert len(content(root)["events"]) == len(before["events"]) + 1
            assert session.views()
        recover(root)
        assert len(content(root)["events"]) == len(before["events"]) + 1
        compact(root)
        with TraceWriter(root, run_id="r", writer="w0") as writer:
            writer.append("events", {"time_ns": [8], "kind": "resumed"})
        assert (root / "events" / "w0-000000.parquet").exists()
        assert len(content(root)["events"]) == len(before["events"]) + 2


class TestReaders:
    def test_keep_what_they_read(self, root: Path) -> None:
        before = content(root)
        query = "SELECT count(*), sum(position) FROM tokens_all"
        with connect(root) as session:
            expected = session.sql(query).rows()
            done = compact(root, num_buckets=4, patience_seconds=0)
            assert set(done.postponed) == set(table_names())
            assert session.sql(query).rows() == expected
            # Whoever comes now sees the new parts under their names aside, and the old ones no more.
            assert content(root) == before
            assert not any("w0-" in path.name for path in Trace(root).snapshot("tokens").parts)
            with connect(root) as other:
                assert other.sql(query).rows() == expected
            recover(root)
            assert [name for name in files(root) if name.endswith("compaction.json")]
            assert session.sql(query).rows() == expected
        recover(root)
        assert content(root) == before
        assert not [name for name in files(root) if name.endswith("compaction.json") or "/." in name]
        assert len(parts(root, "tokens")) <= 4

    def test_take_old_parts_while_the_disk_holds_both(self, root: Path) -> None:
        """Before the intent stands, new parts are nothing."""
        before = content(root)
        (root / "tokens" / ".compact-0004-0000-000000.parquet.77").write_bytes(b"PAR1 half")
        assert content(root) == before
        recover(root)
        assert not list((root / "tokens").glob(".*"))


class TestRefused:
    def test_another_compaction_at_work(self, root: Path) -> None:
        from tracekit.store.lease import Lease

        lease = Lease(root / "journal" / "compact.lease", "")
        with pytest.raises(InputError, match=r"a\.trace is being compacted by another process; wait for it"):
            compact(root)
        lease.release()
        assert compact(root).num_rows

    def test_replay_in_the_making(self, root: Path) -> None:
        partial = root.rename(root.with_name("b.trace.partial"))
        before = files(partial)
        with pytest.raises(InputError, match=r"b\.trace\.partial is a replay in the making.*finish the replay first"):
            compact(partial)
        assert files(partial) == before

    def test_damaged_part_is_named_and_nothing_changes(self, root: Path) -> None:
        part = parts(root, "hidden")[3]
        whole = part.read_bytes()
        part.write_bytes(whole[:-9])
        with pytest.raises(TraceFormatError, match=rf"{part.name} cannot be read as a Parquet part"):
            compact(root)
        assert len(parts(root, "hidden")) > 8
        assert not [name for name in files(root) if "/." in name and "lock" not in name]
        part.write_bytes(whole)
        before = content(root)
        compact(root)
        assert content(root) == before

    def test_intent_that_leads_out_of_its_folder(self, root: Path, tmp_path: Path) -> None:
        precious = tmp_path / "precious-000000.parquet"
        precious.write_bytes(b"mine")
        intent = root / "journal" / "events" / "compaction.json"
        for named in (
            {"new": [], "superseded": ["../../precious-000000.parquet"]},
            {"new": [{"part": "x-000000.parquet", "aside": "../../precious-000000.parquet"}], "superseded": []},
            {"new": [{"part": "../../y-000000.parquet", "aside": ".x-000000.parquet.1"}], "superseded": []},
            {"superseded": []},
            [1],
        ):
            intent.write_text(json.dumps(named))
            for act in (recover, compact, lambda root: Trace(root).read("events")):
                with pytest.raises(TraceFormatError, match=r"compaction\.json is not a compaction's intent"):
                    act(root)
        assert precious.read_bytes() == b"mine"

    def test_reserved_names_of_writers(self, root: Path) -> None:
        for name in ("compact", "compact-0001-0000"):
            with pytest.raises(InputError, match="begin with 'compact-'"):
                TraceWriter(root, run_id="r", writer=name)


class TestLargePartitions:
    def test_are_gathered_from_the_disk(self, tmp_path: Path) -> None:
        from tracekit.store.compaction.shuffle import Shuffle
        from tracekit.store.compaction.sorting import sorted_rows

        chance = np.random.default_rng(2)
        rows = pa.table(
            {
                "run_id": pa.array(["r"] * 5000),
                "request_id": pa.array([f"q{number}" for number in chance.integers(0, 3, 5000)]),
                "position": pa.array(chance.integers(0, 900, 5000), pa.int32()),
                "number": pa.array(range(5000)),
                "values": pa.array([[float(number)] * (number % 7) for number in range(5000)]),
            }
        )
        spread = {name: hashlib.md5(name.encode()).hexdigest()[:8] for name in ("q0", "q1", "q2")}
        expected = sorted(rows.to_pylist(), key=lambda row: (spread[row["request_id"]], row["position"], row["number"]))
        with Shuffle(tmp_path, rows.schema, 4, 10_000) as shuffle:
            for start in range(0, 5000, 777):
                piece = rows.slice(start, 777)
                shuffle.add(piece, np.full(piece.num_rows, 2))
            shuffle.flush()
            assert not list(tmp_path.iterdir())
            for most_bytes in (0, 1 << 30):
                chunks = list(sorted_rows(shuffle, 2, 20_000, most_bytes))
                assert pa.concat_tables(chunks).to_pylist() == expected
                assert all(chunk.nbytes < 30_000 for chunk in chunks)
                assert list(sorted_rows(shuffle, 1, 20_000, most_bytes)) == []

    def test_rows_of_one_prompt_are_spread(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from tracekit.store.compaction import bucketing

        made: list[Any] = []

        class Watched(bucketing.Shuffle):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                made.append(self)

        monkeypatch.setattr(bucketing, "Shuffle", Watched)
        monkeypatch.setattr(bucketing.Budget, "most_bytes_of_partition", 10_000)
        requests = [make_request(f"q{n}", prompt=[1], token_ids=range(100)) for n in range(60)]
        root = make_trace(tmp_path / "a", requests=requests)
        before = content(root)
        compact(root, num_buckets=2, limits=Limits(threads=2))
        assert content(root) == before
        tokens = max(made, key=lambda shuffle: sum(shuffle.num_bytes))
        assert sum(size > 0 for size in tokens.num_bytes) > 20


def test_temporary_rows_go_where_they_are_told(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    made: list[Any] = []
    file = tempfile.TemporaryFile

    def watched(**options: Any) -> Any:
        made.append(options["dir"])
        return file(**options)

    monkeypatch.setattr(tempfile, "TemporaryFile", watched)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    compact(root, limits=Limits("64MB", 1, scratch))
    assert set(made) == {scratch}
    assert os.listdir(scratch) == []
