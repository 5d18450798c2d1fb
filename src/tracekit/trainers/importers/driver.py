"""Turns files of a trainer into one trace or two: the rollout's side, and the trainer's, whose parent that is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tracekit.errors import ConfigError, InputError, OutputExistsError, TraceFormatError
from tracekit.fingerprint import prompt_hash
from tracekit.schema import arrow_schema
from tracekit.store import TraceWriter, create_trace
from tracekit.trainers.importers.base import Importer, Record, load_importer
from tracekit.trainers.passes import Pass, new_run_id, runs_row
from tracekit.version import __version__

# Rows of so many sequences are written together.
_AT_ONCE = 256


@dataclass(frozen=True)
class ImportSummary:
    """What an import made.

    Attributes:
        rollout, trainer: the traces; None where the files do not hold that side.
        num_sequences, num_tokens: what they hold; tokens of the rollout's side.
        temperature_unknown: no sampling temperature is known, so metrics of processed logprobs find no token.
    """

    rollout: Path | None
    trainer: Path | None
    num_sequences: int
    num_tokens: int
    temperature_unknown: bool


def import_files(
    name: str,
    paths: Iterable[Path | str],
    out: Path | str,
    *,
    rollout_out: Path | str | None = None,
    temperature: float | None = None,
) -> ImportSummary:
    """Imports files, or folders of them.

    Nothing stands at the new paths until all is written.

    Args:
        name: of an importer, such as 'prime-rl'.
        paths: the files.
        out: the new trace: the trainer's side where the files hold one, else the rollout's.
        rollout_out: where the rollout's side goes, for files that hold both.
        temperature: what all requests were sampled at, where the files do not say it.

    Raises:
        ConfigError: unknown importer, or `rollout_out` is missing or has nothing to hold.
        InputError: a file is not of the format; names it, the record and the field.
        OutputExistsError: a place is taken.
    """
    importer = load_importer(name)
    files = [file for path in paths for file in importer.files(Path(path))]
    both = importer.has_trainer(files[0])
    if both and rollout_out is None:
        raise ConfigError(f"{files[0]} holds the rollout's side and the trainer's: say where the rollout's goes")
    if not both and rollout_out is not None:
        raise ConfigError(f"{files[0]} holds the rollout's side only: it goes to {out}; leave rollout_out away")
    rollout_path = Path(rollout_out if rollout_out is not None else out)
    with contextlib.ExitStack() as stack:
        rollout = stack.enter_context(_Side(rollout_path, "record", importer, files, None))
        trainer = stack.enter_context(_Side(Path(out), "trainer", importer, files, rollout.trace_id)) if both else None
        num_sequences = num_tokens = 0
        seen: set[str] = set()
        known = temperature is not None
        for record in _records(importer, files):
            if record.request_id in seen:
                raise InputError(
                    f"{record.where}: sequence '{record.request_id}' is there twice; was a file given twice?"
                )
            seen.add(record.request_id)
            if trainer is None and record.passes:
                raise InputError(f"{record.where}: holds a trainer's side, but {files[0]} does not; import them apart")
            request = _request(record, temperature)
            known = known or request.get("temperature") is not None
            with _at(record):
                rollout.add(record, request, None, record.rollout)
                for of, columns in record.passes.items():
                    if trainer is not None:
                        trainer.add(record, request, of, columns, rollout.run_id)
            num_sequences += 1
            num_tokens += 0 if record.token_ids is None else len(record.token_ids)
        if not num_sequences:
            raise InputError(f"{files[0]}: no sequence in {len(files)} file(s)")
    return ImportSummary(rollout_path, Path(out) if both else None, num_sequences, num_tokens, not known)


class _Side:
    """One of the new traces; it gets its name when all is written, and is gone where something fails."""

    def __init__(self, path: Path, role: Any, importer: Importer, files: list[Path], parent: str | None) -> None:
        self.run_id = f"import-{uuid.uuid4().hex}"
        self._path = path
        self._partial = path.with_name(f"{path.name}.importing-{os.getpid()}")
        if os.path.lexists(path):
            raise OutputExistsError(f"{path} exists already; choose another path or remove it first")
        self._role = role
        self._importer = importer
        self._options = {"importer": type(importer).__name__, "files": [str(file) for file in files[:100]]}
        self.trace_id = create_trace(self._partial, role, parent=parent).trace_id
        self._writer = TraceWriter(self._partial, run_id=self.run_id)
        self._runs: dict[Pass | None, str] = {}
        self._rows: dict[str, dict[str, list[Any]]] = {}
        self._num = 0

    def __enter__(self) -> _Side:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self._flush()
            self._writer.close()
            if error is None:
                os.rename(self._partial, self._path)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def add(
        self,
        record: Record,
        request: Mapping[str, Any],
        of: Pass | None,
        columns: Mapping[str, Any],
        source_run_id: str | None = None,
    ) -> None:
        """Adds the rows of one sequence."""
        ids = {"run_id": self._run(of, source_run_id), "request_id": record.request_id}
        self._append("requests", ids | dict(request), 1)
        if record.token_ids is None:
            return
        num = len(record.token_ids)
        index = np.arange(num, dtype=np.int32)
        self._append("outcomes", ids | {"num_output_tokens": num} | dict(record.outcome), 1)
        given = np.zeros(num, bool) if record.sampled is None else ~record.sampled
        tokens = {
            "output_index": index,
            "position": index + (0 if record.prompt_ids is None else len(record.prompt_ids)),
            "token_id": record.token_ids,
            "forced": given if of is None else np.ones(num, bool),
            "is_prompt": False,
        }
        own = {} if of is None else of.columns
        self._append("tokens", ids | own | tokens | dict(columns), num)
        self._num += 1
        if self._num % _AT_ONCE == 0:
            self._flush()

    def _append(self, table: str, columns: Mapping[str, Any], num: int) -> None:
        schema = arrow_schema(table)
        rows = self._rows.setdefault(table, {name: [] for name in schema.names})
        for name, chunks in rows.items():
            value, kind = columns.get(name), schema.field(name).type
            if value is None:
                chunks.append(pa.nulls(num, kind))
            elif table == "tokens" and isinstance(value, list | np.ndarray | tuple):
                chunks.append(pa.array(value, kind))
            else:
                chunks.append(pa.array([value] * num, kind))

    def _flush(self) -> None:
        for table, rows in self._rows.items():
            self._writer.append(table, {name: pa.chunked_array(chunks) for name, chunks in rows.items()})
        self._rows = {}

    def _run(self, of: Pass | None, source_run_id: str | None) -> str:
        if of in self._runs:
            return self._runs[of]
        writer = self._writer.writer
        if of is None:
            row = {
                "run_id": self.run_id,
                "writer": writer,
                "role": self._role,
                "started_ns": time.time_ns(),
                "tracekit_version": __version__,
                "engine": self._importer.engine,
                "options": json.dumps(self._options),
            }
        else:
            row = runs_row(
                of,
                run_id=new_run_id(),
                writer=writer,
                source_run_id=source_run_id or "",
                known={"engine": self._importer.trainer, "process": None, "process_id": None, "hostname": None},
                more=self._options,
            )
        self._writer.append("runs", row)
        self._runs[of] = row["run_id"]
        return self._runs[of]


def _records(importer: Importer, files: list[Path]) -> Iterator[Record]:
    for file in files:
        yield from importer.records(file)


def _request(record: Record, temperature: float | None) -> dict[str, Any]:
    ids = record.prompt_ids
    known: dict[str, Any] = {"temperature": temperature, **record.request}
    if ids is not None:
        known |= {"prompt_token_ids": ids, "prompt_hash": prompt_hash(ids.tolist()), "num_prompt_tokens": len(ids)}
    return known


@contextlib.contextmanager
def _at(record: Record) -> Iterator[None]:
    """Tells where it was that a value did not fit its column."""
    try:
        yield
    except (pa.ArrowException, TypeError, ValueError, OverflowError, TraceFormatError) as error:
        raise InputError(f"{record.where}: a value is of another type than expected: {error}") from error
