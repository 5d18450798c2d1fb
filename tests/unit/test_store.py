"""Writing and reading a trace in good order, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tracekit.errors import InputError, NotATraceError, OutputExistsError, TraceFormatError
from tracekit.schema import arrow_schema, table_names
from tracekit.store import Manifest, Trace, TraceWriter, create_trace

_TWIN = Path(__file__).parents[1] / "golden" / "v1.0" / "trace.json"
# The twin writes infinities as strings, since JSON has none; Python's reader knows them by another name.
GOLDEN = json.loads(_TWIN.read_text(encoding="utf-8").replace('"-inf"', "-Infinity"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "a.trace"
    create_trace(path, "record")
    return path


def add_events(writer: TraceWriter, *times: int) -> None:
    writer.append("events", {"time_ns": list(times), "kind": "paused"})


def event_times(root: Path) -> list[int]:
    times: list[int] = Trace(root).read("events", ["time_ns"]).column("time_ns").to_pylist()
    return times


def files(root: Path) -> set[str]:
    """All files but those of the empty trace."""
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {str(path) for path in found if path.name not in ("manifest.json", "empty-000000.parquet")}


class TestCreate:
    def test_empty_trace_shows_every_column_to_any_tool(self, root: Path) -> None:
        for table in table_names():
            (part,) = (root / table).iterdir()
            assert part.name == "empty-000000.parquet"
            assert pq.read_table(part).num_rows == 0
            assert pq.read_schema(part).equals(arrow_schema(table))
            assert Trace(root).num_rows(table) == 0

    def test_manifest(self, tmp_path: Path) -> None:
        parent = create_trace(tmp_path / "a", "record")
        child = create_trace(tmp_path / "b", "replay", parent=parent.trace_id)
        content = json.loads((tmp_path / "b" / "manifest.json").read_text())
        assert content.keys() == {"format_version", "trace_id", "role", "parent", "created_by"}
        assert (content["role"], content["parent"], content["format_version"]) == ("replay", parent.trace_id, "1.2")
        assert Manifest.read(tmp_path / "b") == child
        assert parent.parent is None
        assert parent.trace_id != child.trace_id

    def test_taken_place_is_left_alone(self, root: Path) -> None:
        before = (root / "manifest.json").read_bytes()
        with pytest.raises(OutputExistsError, match=r"a\.trace exists already; choose another path or remove it"):
            create_trace(root, "record")
        assert (root / "manifest.json").read_bytes() == before

    def test_place_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="cannot be made: Not a directory"):
            create_trace(tmp_path / "file" / "a.trace", "record")


class TestManifestErrors:
    @pytest.mark.parametrize(
        ("content", "error", "message"),
        [
            (
                '{"format_version": "2.0"}',
                TraceFormatError,
                r"has trace format 2\.0, this tracekit .* reads 1\.x; upgrade",
            ),
            (
                '{"format_version": "0.9"}',
                TraceFormatError,
                r"has trace format 0\.9, .* reads 1\.x; read it with an older",
            ),
            ('{"format_version": "1"}', NotATraceError, "format_version is '1', not like '1.0'"),
            ('{"format_version": 1.0}', NotATraceError, r"format_version is 1\.0, not like '1\.0'"),
            ('{"format_version": "1.0"}', NotATraceError, "trace_id is missing"),
            ("[]", NotATraceError, "format_version is None"),
            ("{", NotATraceError, "cannot be read as a trace manifest"),
            ("\xff", NotATraceError, "cannot be read as a trace manifest"),
        ],
    )
    def test_manifest_that_cannot_be_used(self, root: Path, content: str, error: type[Exception], message: str) -> None:
        (root / "manifest.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(error, match=message):
            Trace(root)
        with pytest.raises(error, match=message):
            TraceWriter(root, run_id="r")

    def test_not_a_trace(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "empty").mkdir()
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "x").touch()
        for name, message in (
            ("none", "no such trace"),
            ("file", "is a file, but a trace is a folder"),
            ("empty", "is an empty folder, not a trace"),
            ("other", "is a folder without manifest.json, not a trace"),
        ):
            with pytest.raises(NotATraceError, match=message):
                Trace(tmp_path / name)

    def test_newer_minor_version_and_unknown_keys_are_read(self, root: Path) -> None:
        content = json.loads((root / "manifest.json").read_text()) | {"format_version": "1.7", "new": [1]}
        (root / "manifest.json").write_text(json.dumps(content))
        assert Trace(root).manifest.format_version == "1.7"


class TestWriter:
    def test_rows_of_every_table_come_back_equal(self, root: Path) -> None:
        with TraceWriter(root, run_id="golden-run", writer="w") as writer:
            for table, rows in GOLDEN["tables"].items():
                for row in rows:
                    writer.append(table, {column: [value] for column, value in row.items()})
        for table, rows in GOLDEN["tables"].items():
            read = Trace(root).read(table)
            # Columns of later versions are null.
            assert read.to_pylist() == [{column: row.get(column) for column in read.column_names} for row in rows], (
                table
            )

    def test_raw_floats_are_exact_copies(self, root: Path) -> None:
        bits = np.random.default_rng(1).integers(0, 2**32, 5000, dtype=np.uint32)
        logits = bits.view(np.float32)
        with TraceWriter(root, run_id="r", writer="w") as writer:
            fixed = {"request_id": "q", "position": [0], "source_dtype": "float32"}
            writer.append("logits", {**fixed, "logits": logits[None, :]})
        found = Trace(root).read("logits").column("logits").combine_chunks().values.to_numpy().view(np.uint32)
        np.testing.assert_array_equal(found, bits)

    def test_run_id_is_filled_in(self, root: Path) -> None:
        with TraceWriter(root, run_id="this-run") as writer:
            add_events(writer, 1, 2)
        assert Trace(root).read("events").column("run_id").to_pylist() == ["this-run"] * 2

    def test_life_of_a_segment(self, root: Path) -> None:
        writer = TraceWriter(root, run_id="r", writer="w")
        add_events(writer, 1)
        assert files(root) == {"journal/w.lease"}
        assert event_times(root) == []
        writer.flush()
        assert files(root) == {"journal/w.lease", "journal/events/w-000000.arrows.zst"}
        assert event_times(root) == [1]
        writer.seal()
        assert files(root) == {"journal/w.lease", "events/w-000000.parquet"}
        add_events(writer, 2)
        writer.flush()
        add_events(writer, 3)
        writer.close()
        assert files(root) == {"events/w-000000.parquet", "events/w-000001.parquet"}
        assert event_times(root) == [1, 2, 3]

    def test_flush_becomes_due_with_time(self, root: Path) -> None:
        with TraceWriter(root, run_id="r", writer="w", flush_seconds=3600) as writer:
            add_events(writer, 1)
            assert event_times(root) == []
        with TraceWriter(root, run_id="r", writer="v", flush_seconds=0) as writer:
            add_events(writer, 2)
            assert event_times(root) == [1, 2]

    def test_full_tables_become_parts(self, root: Path) -> None:
        with TraceWriter(root, run_id="r", writer="w", part_bytes=1, flush_seconds=0) as writer:
            for time in range(5):
                add_events(writer, time)
            assert len(list((root / "events").glob("w-*.parquet"))) == 5
        assert event_times(root) == list(range(5))

    @pytest.mark.parametrize("flush_seconds", [0, 3600])
    def test_memory_holds_a_quarter_of_a_part(self, root: Path, flush_seconds: float) -> None:
        part_bytes, row = 8 << 20, np.zeros(50_000, np.float32)
        before, most = pa.total_allocated_bytes(), 0
        with TraceWriter(root, run_id="r", writer="w", part_bytes=part_bytes, flush_seconds=flush_seconds) as writer:
            for index in range(100):
                key = {"request_id": ["a"], "output_index": [index], "position": [index]}
                writer.append("logits", key | {"logits": [row], "source_dtype": "float32"})
                most = max(most, pa.total_allocated_bytes() - before)
        # A quarter of it, what comes on top of that with the last flush, and a copy while it is written.
        assert most < part_bytes // 2
        parts = sorted((root / "logits").glob("w-*.parquet"))
        sizes = [pq.read_metadata(part).num_rows for part in parts]
        assert sizes == ([44, 44, 12] if flush_seconds else [42, 42, 16])
        assert [pq.read_metadata(part).num_row_groups for part in parts] == [4, 4, 2]
        assert Trace(root).read("logits", ["output_index"]).column(0).to_pylist() == list(range(100))

    def test_name_used_again_counts_on(self, root: Path) -> None:
        for time in range(3):
            with TraceWriter(root, run_id="r", writer="w") as writer:
                add_events(writer, time)
        assert files(root) == {f"events/w-{seq:06d}.parquet" for seq in range(3)}
        assert event_times(root) == [0, 1, 2]

    def test_more_parts_than_six_digits_count(self, root: Path) -> None:
        with TraceWriter(root, run_id="r", writer="w") as writer:
            add_events(writer, 1)
        os.rename(root / "events" / "w-000000.parquet", root / "events" / "w-999999.parquet")
        with TraceWriter(root, run_id="r", writer="w") as writer:
            add_events(writer, 2)
        assert files(root) == {"events/w-999999.parquet", "events/w-1000000.parquet"}
        assert event_times(root) == [1, 2]

    def test_many_writers_share_a_trace(self, root: Path) -> None:
        writers = [TraceWriter(root, run_id="r") for _ in range(4)]
        for time, writer in enumerate(writers):
            add_events(writer, time)
        for writer in writers:
            writer.close()
        assert sorted(event_times(root)) == [0, 1, 2, 3]

    def test_name_of_a_living_writer_is_refused(self, root: Path) -> None:
        with TraceWriter(root, run_id="r", writer="w"):
            with pytest.raises(InputError, match=r"writer 'w' is at work in .*a\.trace; use another name"):
                TraceWriter(root, run_id="r", writer="w")
            assert (root / "journal" / "w.lease").exists()

    @pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "-a", "ü", "empty", "a.b", "a\n"])
    def test_names_that_cannot_be_used(self, root: Path, name: str) -> None:
        if name:
            with pytest.raises(InputError, match="writer name"):
                TraceWriter(root, run_id="r", writer=name)
        else:
            with TraceWriter(root, run_id="r", writer=name) as writer:
                assert writer.writer.startswith("record-")

    def test_closed_writer_takes_no_rows(self, root: Path) -> None:
        writer = TraceWriter(root, run_id="r", writer="w")
        writer.close()
        writer.close()
        with pytest.raises(ValueError, match="writer 'w' is closed"):
            add_events(writer, 1)

    def test_rows_that_do_not_fit_leave_the_others_alone(self, root: Path) -> None:
        with TraceWriter(root, run_id="r", writer="w") as writer:
            add_events(writer, 1)
            with pytest.raises(TraceFormatError, match="column 'time_ns' must not be null"):
                writer.append("events", {"kind": ["paused"]})
            with pytest.raises(TraceFormatError, match="no table 'event'"):
                writer.append("event", {"time_ns": [1]})
        assert event_times(root) == [1]

    def test_rows_are_kept_where_the_caller_fails(self, root: Path) -> None:
        with contextlib.suppress(KeyError), TraceWriter(root, run_id="r", writer="w") as writer:
            add_events(writer, 1)
            raise KeyError
        assert event_times(root) == [1]


class TestReader:
    def test_columns_by_name(self, root: Path) -> None:
        with TraceWriter(root, run_id="r", writer="w") as writer:
            add_events(writer, 1)
            writer.flush()
            assert Trace(root).read("events", ["kind", "time_ns"]).to_pylist() == [{"kind": "paused", "time_ns": 1}]
        assert Trace(root).read("events", ["kind", "time_ns"]).to_pylist() == [{"kind": "paused", "time_ns": 1}]

    def test_unknown_names(self, root: Path) -> None:
        with pytest.raises(TraceFormatError, match=r"no column 'time' \(did you mean"):
            Trace(root).read("events", ["time"])
        with pytest.raises(TraceFormatError, match=r"no table 'evens' \(did you mean 'events'\?\)"):
            Trace(root).read("evens")

    def test_journal_whose_part_exists_is_ignored(self, root: Path) -> None:
        writer = TraceWriter(root, run_id="r", writer="w")
        add_events(writer, 1, 2)
        writer.flush()
        journal = root / "journal" / "events" / "w-000000.arrows.zst"
        content = journal.read_bytes()
        writer.close()
        journal.write_bytes(content)
        assert event_times(root) == [1, 2]
        assert Trace(root).num_rows("events") == 2
        assert Trace(root).num_bytes("events") == (root / "events" / "w-000000.parquet").stat().st_size

    def test_part_that_a_directory_listing_missed_is_found(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with TraceWriter(root, run_id="r", writer="w") as writer:
            for time in range(3):
                add_events(writer, time)
                writer.seal()
        listing = Path.iterdir
        monkeypatch.setattr(
            Path, "iterdir", lambda folder: (path for path in listing(folder) if path.name != "w-000001.parquet")
        )
        assert event_times(root) == [0, 1, 2]

    def test_num_bytes_counts_parts_and_journals(self, root: Path) -> None:
        assert Trace(root).num_bytes("events") == 0
        with TraceWriter(root, run_id="r", writer="w") as writer:
            add_events(writer, 1)
            writer.seal()
            add_events(writer, 2)
            writer.flush()
            sizes = [(root / file).stat().st_size for file in files(root) if "lease" not in file]
            assert len(sizes) == 2
            assert Trace(root).num_bytes("events") == sum(sizes)

    def test_foreign_and_unfinished_files_are_ignored(self, root: Path) -> None:
        for name in ("notes.txt", ".w-000000.parquet.123", "w.parquet", "w-1.parquet", "w-00000x.parquet"):
            (root / "events" / name).write_bytes(b"not Parquet")
        (root / "journal" / "events" / "README").touch()
        assert event_times(root) == []

    def test_minor_versions_mix(self, root: Path) -> None:
        """A newer minor version's column is left out, an older one's missing column is null; also in journals."""
        schema = arrow_schema("events")
        row = {"run_id": "r", "time_ns": 1, "kind": "paused", "step_id": 5}
        newer = pa.schema(
            [*schema, pa.field("novelty", pa.int32())], {**schema.metadata, b"tracekit.format_version": b"1.9"}
        )
        older = pa.schema([field for field in schema if field.name != "attributes"], schema.metadata)
        for writer, written in (("n", newer), ("o", older)):
            rows = pa.Table.from_pylist([{**row, "novelty": 3}], written)
            pq.write_table(rows, root / "events" / f"{writer}-000000.parquet")
            _write_journal(root / "journal" / "events" / f"{writer}-000001.arrows.zst", rows)
        trace = Trace(root)
        expected = {**dict.fromkeys(schema.names), **row}
        assert trace.read("events").to_pylist() == [expected] * 4
        assert trace.read("events", ["attributes"]).column("attributes").to_pylist() == [None] * 4
        assert trace.num_rows("events") == 4

    def test_recovery_keeps_a_newer_minor_versions_columns(self, root: Path) -> None:
        from tracekit.store import recover

        schema = arrow_schema("events")
        newer = pa.schema([*schema, pa.field("novelty", pa.int32())], schema.metadata)
        rows = pa.Table.from_pylist([{"run_id": "r", "time_ns": 1, "kind": "paused", "novelty": 3}], newer)
        _write_journal(root / "journal" / "events" / "n-000000.arrows.zst", rows)
        assert recover(root) == {"events": 1}
        assert pq.read_table(root / "events" / "n-000000.parquet").column("novelty").to_pylist() == [3]

    def test_part_of_a_future_major_version_is_refused(self, root: Path) -> None:
        schema = arrow_schema("events").with_metadata({b"tracekit.format_version": b"2.1"})
        pq.write_table(schema.empty_table(), root / "events" / "w-000000.parquet")
        with pytest.raises(
            TraceFormatError, match=r"w-000000\.parquet has trace format 2\.1, this tracekit reads 1\.x"
        ):
            Trace(root).read("events")

    def test_other_tools_list_and_string_types_are_taken(self, root: Path) -> None:
        with TraceWriter(root, run_id="r", writer="w") as writer:
            row = {"request_id": "q", "position": [0], "token_id": 1, "forced": False, "is_prompt": False}
            writer.append("tokens", {**row, "top_logits": [[1.0, 2.0]]})
        part = root / "tokens" / "w-000000.parquet"
        rows = pq.read_table(part)
        for name, other in (("top_logits", pa.large_list(pa.float32())), ("request_id", pa.large_string())):
            index = rows.column_names.index(name)
            rows = rows.set_column(index, name, rows.column(name).cast(other))
        pq.write_table(rows, part)
        found = Trace(root).read("tokens")
        assert found.schema.equals(arrow_schema("tokens"))
        assert found.column("top_logits").to_pylist() == [[1.0, 2.0]]

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"run_id": ["r"], "kind": ["x"]}, "column 'time_ns' is missing"),
            (
                {"run_id": ["r"], "kind": ["x"], "time_ns": ["noon"]},
                "column 'time_ns' is string, the format says int64",
            ),
        ],
    )
    def test_part_with_other_columns_than_the_format(self, root: Path, columns: dict[str, Any], message: str) -> None:
        pq.write_table(pa.table(columns), root / "events" / "w-000000.parquet")
        with pytest.raises(TraceFormatError, match=rf"w-000000\.parquet: {message}"):
            Trace(root).read("events")

    def test_damaged_part_is_named(self, root: Path) -> None:
        with TraceWriter(root, run_id="r", writer="w") as writer:
            add_events(writer, 1)
        part = root / "events" / "w-000000.parquet"
        part.write_bytes(part.read_bytes()[:-7])
        for read in (Trace(root).read, Trace(root).num_rows):
            with pytest.raises(TraceFormatError, match=r"w-000000\.parquet cannot be read as a Parquet part \("):
                read("events")


def _write_journal(path: Path, rows: pa.Table) -> None:
    from tracekit.store.journal import JournalWriter

    journal = JournalWriter(path, rows.schema)
    for batch in rows.to_batches():
        journal.append(batch)
    journal.close()
