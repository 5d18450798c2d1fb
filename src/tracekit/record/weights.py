"""Counts the versions of a model's weights: bookkeeping alone, told by an adapter what happens to them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tracekit.fingerprint import names_hash
from tracekit.record.capture import Weights


class WeightsUpdated(NamedTuple):
    """A new version, as the first forward pass with it finds it.

    Attributes:
        old_version, version: the version before, and this one.
        label: what engine or trainer call it.
        partial: whether the update was still under way at that forward pass.
        names: of the tensors that came since the version before, or since the update was opened. None where
            the engine does not tell.
        paths: the calls by which they came, in order, each once.
        num_calls: how many calls that were.
        time_ns: when the last of them ended.
    """

    old_version: int
    version: int
    label: str | None
    partial: bool
    names: frozenset[str] | None
    paths: tuple[str, ...]
    num_calls: int
    time_ns: int

    def attributes(self) -> dict[str, Any]:
        """Returns the attributes of the event `weights_updated`."""
        return {
            "old_version": self.old_version,
            "version": self.version,
            "label": self.label,
            "partial": self.partial,
            "num_tensors": None if self.names is None else len(self.names),
            "names_hash": None if self.names is None else names_hash(self.names),
            "paths": list(self.paths),
            "num_calls": self.num_calls,
        }


@dataclass
class _Change:
    """What was done since the last forward pass, or in the call that is running."""

    names: set[str] = field(default_factory=set)
    paths: list[str] = field(default_factory=list)
    num_calls: int = 0
    time_ns: int = 0

    def add(self, path: str, names: Iterable[str]) -> None:
        self.names.update(names)
        if path not in self.paths:
            self.paths.append(path)
        self.num_calls += 1
        self.time_ns = time.time_ns()


class WeightTracker:
    """The version of one model's weights, from 0.

    It rises at a forward pass, by one, where anything was written since the forward pass before: equal versions
    are equal weights, and an update of many calls is one version unless forward passes ran in its midst. Calls may
    come from any thread.

    Attributes:
        version: of the latest forward pass.
        label: what engine or trainer call the weights that are there now.
    """

    def __init__(self, label: str | None = None) -> None:
        self.version = 0
        self.label = label
        self._lock = threading.RLock()
        self._pending: _Change | None = None
        # The outermost call that is running, and how deep calls are nested in it.
        self._call = _Change()
        self._depth = 0
        self._certain = False
        self._muted = 0
        # Of an update that was opened: the names so far, and whether a part of it was written, and seen.
        self._opened: set[str] | None = None
        self._part_written = self._part_seen = False

    @property
    def weights(self) -> Weights:
        """What a forward pass has that runs now."""
        return Weights(self.version, self.label, self._opened is not None or self._depth > 0)

    @property
    def has_changed(self) -> bool:
        """Whether anything was written since the latest forward pass."""
        return self._pending is not None

    @contextlib.contextmanager
    def changing(self, path: str, *, certain: bool = False) -> Iterator[None]:
        """Surrounds a call that writes; calls within it are part of it.

        Args:
            path: what the call is known as.
            certain: it writes even where no names of tensors pass by; otherwise those decide.
        """
        with self._lock:
            if self._depth == 0:
                self._call, self._certain = _Change(), False
            self._depth += 1
        try:
            yield
            with self._lock:
                self._certain |= certain
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0 and (self._call.names or self._certain):
                    self._add(path, self._call.names)

    def note_name(self, name: str) -> None:
        """Takes note of a tensor that the running call is about to write."""
        if not self._muted:
            self._call.names.add(name)

    def changed(self, path: str, names: Iterable[str] = ()) -> None:
        """Takes note of a write that has happened."""
        with self._lock:
            self._add(path, names)

    @contextlib.contextmanager
    def muted(self) -> Iterator[None]:
        """Surrounds calls that go through the motions of an update without writing."""
        self._muted += 1
        try:
            yield
        finally:
            self._muted -= 1

    def open(self) -> None:
        """Begins an update of several calls: forward passes from now on run with a part of it."""
        with self._lock:
            if self._opened is None:
                self._opened, self._part_written, self._part_seen = set(), False, False

    def close(self, path: str) -> None:
        """Ends it. Where a forward pass saw a part of it, the whole is a version of its own."""
        with self._lock:
            if self._opened is not None and self._part_seen:
                self._add(path, ())
            self._opened = None

    def name(self, label: str | None, *, changed: bool = False, partial: bool | None = None) -> None:
        """Takes what a caller says of the weights that are there now.

        Args:
            label: what the caller calls them.
            changed: they were written to in a way that may not have been seen.
            partial: True begins an update of several calls, False ends it.
        """
        with self._lock:
            if partial:
                self.open()
            if changed:
                self._add("set_weight_version", ())
            if partial is False:
                self.close("set_weight_version")
            self.label = label

    def forward(self) -> WeightsUpdated | None:
        """Takes note that a forward pass begins; returns the new version where there is one."""
        with self._lock:
            change = self._pending
            if self._depth and self._call.names:
                # Another thread is in the middle of a call. What it has written by now counts; the rest will.
                change = change or _Change()
                change.add("unfinished call", self._call.names)
            if change is None:
                return None
            self._pending = None
            self._part_seen = self._part_written
            self.version += 1
            return WeightsUpdated(
                old_version=self.version - 1,
                version=self.version,
                label=self.label,
                partial=bool(self.weights.partial),
                names=frozenset(change.names) or None,
                paths=tuple(change.paths),
                num_calls=change.num_calls,
                time_ns=change.time_ns,
            )

    def _add(self, path: str, names: Iterable[str]) -> None:
        if self._muted:
            return
        if self._pending is None:
            self._pending = _Change()
        if self._opened is not None:
            self._part_written = True
            self._opened.update(names)
            names = self._opened
        self._pending.add(path, names)
