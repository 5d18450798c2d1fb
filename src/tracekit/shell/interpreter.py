"""Runs statements and dot-commands, whoever typed them, and writes what they give."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from tracekit.analysis import Session
from tracekit.analysis.catalogue import Catalogue
from tracekit.errors import InputError, TracekitError
from tracekit.report.formats.base import Rows
from tracekit.report.rows import write_rows
from tracekit.report.values import plural
from tracekit.shell import commands
from tracekit.shell.pager import paged
from tracekit.shell.statements import Piece, pieces_of

DEFAULT_ROWS = 1000
_DEEPEST = 16


@dataclass
class Settings:
    """What dot-commands set.

    Attributes:
        mode: the format that rows are written in.
        max_rows: how many rows a table shows; None shows all.
        timer: whether the time of each statement is told.
        pager: whether what is longer than a terminal goes through a pager.
    """

    mode: str = "table"
    max_rows: int | None = DEFAULT_ROWS
    timer: bool = False
    pager: bool = True


class Interpreter:
    """A session with its settings and its place for output.

    Args:
        session: what is asked.
        stdout: where data goes while no `.output` says otherwise; notes and times go to standard error.
    """

    def __init__(self, session: Session, stdout: BinaryIO) -> None:
        self.session = session
        self.settings = Settings()
        self._stdout = stdout
        self._file: BinaryIO | None = None
        self._depth = 0

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        """The names that the session offers, read when they are first needed."""
        return Catalogue.of(self.session)

    def run(self, piece: Piece) -> None:
        """Runs one piece.

        Raises:
            TracekitError: it cannot be run; the interpreter goes on with the next one as if it had not been.
            commands.Quit: it is `.quit`.
        """
        if piece.is_command:
            commands.run(self, piece.text)
            return
        started = time.perf_counter()
        result = self.session.sql(piece.text)
        rows = _FirstRows(result, self.settings.max_rows if self.settings.mode == "table" else None)
        with self.sink() as sink:
            write_rows(rows, self.settings.mode, sink)
        if rows.more:
            limit = plural(self.settings.max_rows or 0, "row")
            self.tell(f"the first {limit}; there are more: .rows all shows them, .output FILE takes them")
        if self.settings.timer:
            self.tell(f"{time.perf_counter() - started:.3f} s")

    def run_all(self, lines: Iterable[str], source: str) -> None:
        """Runs all pieces of a text, and stops at the first one that fails.

        Args:
            lines: the text; a statement is run as soon as its last line is there.
            source: what the text is called in errors.
        """
        if self._depth == _DEEPEST:
            raise InputError(f"{source}: files read each other {_DEEPEST} deep; does one read itself?")
        self._depth += 1
        try:
            for piece in pieces_of(lines):
                try:
                    self.run(piece)
                except TracekitError as error:
                    raise type(error)(f"{source}, line {piece.line}: {error}") from error
        finally:
            self._depth -= 1

    @contextlib.contextmanager
    def sink(self) -> Iterator[BinaryIO]:
        """Gives where data goes now."""
        if self._file is not None:
            yield self._file
            self._file.flush()
        elif self.settings.pager and self._stdout.isatty():
            with paged(self._stdout) as sink:
                yield sink
        else:
            yield self._stdout
            self._stdout.flush()

    def redirect(self, path: Path | None) -> None:
        """Sends data to a file, which is written anew, or back to standard output.

        Raises:
            InputError: the file cannot be written.
        """
        if self._file is not None:
            self._file.close()
            self._file = None
        if path is not None:
            try:
                self._file = path.open("wb")
            except OSError as error:
                raise InputError(f"{path} cannot be written: {error.strerror or error}") from error

    def tell(self, text: str) -> None:
        """Says something that is no data."""
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Completes the file that `.output` opened."""
        self.redirect(None)


class _FirstRows:
    """The first rows of others; `more` says afterwards whether there were more."""

    def __init__(self, rows: Rows, max_rows: int | None) -> None:
        self._rows = rows
        self._max_rows = max_rows
        self.more = False

    @property
    def schema(self) -> pa.Schema:
        return self._rows.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        left = self._max_rows
        for batch in self._rows.batches():
            if left is None:
                yield batch
                continue
            yield batch.slice(0, left)
            if batch.num_rows > left:
                self.more = True
                return
            left -= batch.num_rows
