"""The replays of a bisection: each stands in its folder under a name that tells its setting, and is made once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracekit.bisect.factors.base import is_taken, load_factor
from tracekit.bisect.scores import Key
from tracekit.bisect.settings import Setting, Space
from tracekit.errors import ConfigError, InputError, OutputExistsError
from tracekit.fingerprint import model_fingerprint
from tracekit.replay import Progress, replay
from tracekit.replay.runs import read_runs
from tracekit.store import Trace
from tracekit.version import __version__

_UNSAFE = re.compile(r"[^A-Za-z0-9.=+-]+")
# A name tells what it can; the digest tells the rest.
_NAME_LENGTH = 80


@dataclass(frozen=True)
class Chosen:
    """Which requests are replayed, as `replay` takes it."""

    only: frozenset[Key] | None = None
    sample: int | None = None
    limit: int | None = None

    def described(self) -> list[Any]:
        return [None if self.only is None else sorted(self.only), self.sample, self.limit]


@dataclass(frozen=True)
class Made:
    """A replay that is there.

    Attributes:
        setting: what it was made with.
        path: the trace.
        is_reused: whether it was there before.
        seconds: that it took; 0 where it was there.
    """

    setting: Setting
    path: Path
    is_reused: bool
    seconds: float


class Replays:
    """Makes replays of one trace, and finds those that an earlier bisection made.

    Args:
        trace: what is replayed.
        folder: where they go; made with the first.
        space: what settings mean.
        model: as the backend wants it named.
        chosen: which requests.
        any_tokenizer: go on where the model's tokenizer is not the recorded one.
    """

    def __init__(
        self,
        trace: Trace,
        folder: Path,
        space: Space,
        *,
        model: Path | None = None,
        chosen: Chosen | None = None,
        any_tokenizer: bool = False,
    ) -> None:
        self.trace = trace
        self.folder = folder
        self.space = space
        self._model = model
        self._chosen = chosen or Chosen()
        self._any_tokenizer = any_tokenizer
        # All that a replay's figures depend on, beside its setting. A trace that is still being written grows.
        self._identity = [
            __version__,
            trace.manifest.trace_id,
            trace.num_rows("tokens"),
            str(model),
            None if model is None else model_fingerprint(model),
            self._chosen.described(),
        ]

    def path(self, setting: Setting) -> Path:
        """Returns where the replay of a setting stands, or will."""
        described = [*self._identity, *self.space.options(setting)]
        digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:10]
        name = _UNSAFE.sub("-", setting.label.replace(" ", "")).strip("-.")[:_NAME_LENGTH]
        return self.folder / f"{name}.{digest}.trace"

    def is_there(self, setting: Setting) -> bool:
        """Returns whether the replay of a setting has been made.

        Raises:
            OutputExistsError: something else stands in its place.
        """
        path = self.path(setting)
        if not path.exists():
            return False
        try:
            parent = Trace(path).manifest.parent
        except InputError as error:
            raise OutputExistsError(
                f"{path} is in the way and no trace; remove it, or choose another folder"
            ) from error
        if parent != self.trace.manifest.trace_id:
            raise OutputExistsError(f"{path} replays another trace than {self.trace.path}; choose another folder")
        return True

    def make(self, setting: Setting, progress: Callable[[Progress], None] | None = None) -> Made:
        """Returns the replay of a setting; makes it, or goes on with it, where it is not there.

        Raises:
            OutputExistsError: something else stands in its place.
            ConfigError, ModelError, BackendUnavailableError: it cannot be made; see `replay`.
        """
        path = self.path(setting)
        if self.is_there(setting):
            self._check(setting)
            return Made(setting, path, True, 0.0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder} cannot be made: {error.strerror or error}; choose another folder"
            ) from error
        backend, options = self.space.options(setting)
        summary = replay(
            self.trace,
            path,
            backend=backend,
            model=self._model,
            only=self._chosen.only,
            sample=self._chosen.sample,
            limit=self._chosen.limit,
            any_tokenizer=self._any_tokenizer,
            progress=progress,
            **options,
        )
        self._check(setting)
        return Made(setting, path, False, summary.seconds)

    def _check(self, setting: Setting) -> None:
        """Raises ConfigError where the replay of a setting says that it was made with another one."""
        runs = read_runs(Trace(self.path(setting)))
        for name, level in setting.changes:
            if not is_taken(load_factor(name), level, runs):
                raise ConfigError(
                    f"what replays passes over {name}={level}: it does not know it, or not beside the rest"
                )

    def of(self, trace: Trace, folder: Path, chosen: Chosen | None = None) -> Replays:
        """Returns the same for another trace, or for other requests."""
        return Replays(trace, folder, self.space, model=self._model, chosen=chosen, any_tokenizer=self._any_tokenizer)
