"""The contract of a replay backend, and the registry that finds one by name.

Shapes: P prompt tokens, T output tokens, K candidates of the parent.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from tracekit.errors import BackendUnavailableError, ConfigError, TraceFormatError, nearest

__all__ = [
    "Backend",
    "BatchLimits",
    "Kept",
    "Rows",
    "RunRows",
    "Sequence",
    "backend_names",
    "build_options",
    "load_backend",
    "parsed_options",
]

ENTRY_POINTS = "tracekit.backends"

# Parameters by which an engine changes logits in ways that no column of `requests` tells.
_UNKNOWN_PROCESSORS = ("logits_processors", "thinking_token_budget", "watermarking")

DEFAULT_TOP_K = 20
# As in `sampling`, which is not imported here for want of torch.
_GREEDY_BELOW = 1e-5

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Sequence:
    """A recorded prompt and the tokens to be scored after it.

    Attributes:
        run_id: the parent's run.
        request_id: the recorded id.
        request: the parent's row of `requests`, merged over processes.
        prompt_ids: int32 [P], P ≥ 1.
        output_ids: int32 [T], T ≥ 1: the recorded tokens in output order, without gaps from the first.
        candidate_ids: int32 [T, K], the parent's `top_token_ids`, -1 where it has fewer; None where it has none.
        hidden: float32 [T, H], the parent's hidden states, exact; None unless the backend needs them.
        hidden_dtype: their dtype in the engine.
        weights: for each output token (version, label) of the weights it was sampled under; None unless needed.
        steps: int64, ids of the steps at which it was scheduled, in order; None unless needed.
        batch_sizes: int32 [T], for each output token how many requests were in the batch that sampled it, 0 where that
            is not known; None unless needed.
        arrival: its place among all that are scored, in order of arrival.
    """

    run_id: str
    request_id: str
    request: Mapping[str, Any]
    prompt_ids: Int32Array
    output_ids: Int32Array
    candidate_ids: Int32Array | None
    hidden: npt.NDArray[np.float32] | None = None
    hidden_dtype: str = "float32"
    weights: list[tuple[int | None, str | None]] | None = None
    steps: npt.NDArray[np.int64] | None = None
    batch_sizes: Int32Array | None = None
    arrival: int = 0

    @property
    def num_input_tokens(self) -> int:
        """How many tokens a forward pass reads: the last output token is predicted, but never read."""
        return len(self.prompt_ids) + len(self.output_ids) - 1

    @property
    def sampling_is_known(self) -> bool:
        """Whether the recorded parameters tell the distribution that tokens were drawn from.

        What a grammar or a custom processor does to logits is not recorded, and a temperature that is null means
        that no parameters were.
        """
        if self.request.get("temperature") is None or self.request.get("structured_output") is not None:
            return False
        try:
            further = dict(json.loads(self.request.get("sampling_params") or "{}"))
        except (TypeError, ValueError) as error:
            raise TraceFormatError(
                f"request '{self.request_id}': sampling_params is no JSON object ({error})"
            ) from error
        return not any(further.get(name) for name in _UNKNOWN_PROCESSORS)

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken."""
        return float(self.request.get("temperature") or 0) < _GREEDY_BELOW

    @property
    def draw_is_known(self) -> bool:
        """Whether its tokens can be drawn again from other logits, given a sampler that counts its random numbers."""
        return self.sampling_is_known and (self.is_greedy or self.request.get("seed") is not None)


@dataclass(frozen=True)
class Kept:
    """What is kept of each token.

    Attributes:
        top_k: number of candidates; None keeps as many as the parent has, or `DEFAULT_TOP_K` where it has none.
        hidden: the final hidden state.
        logits: the whole row of raw logits.
        free: 'engine' has tokens sampled anew, with the recorded seeds and parameters; 'coupled' tells besides which
            token the recorded draw's random numbers pick. None scores the recorded tokens.
    """

    top_k: int | None = None
    hidden: bool = False
    logits: bool = False
    free: str | None = None

    def num_candidates(self, sequence: Sequence) -> int:
        """Returns how many candidates to keep of each token of a sequence."""
        if self.top_k is not None:
            return self.top_k
        return DEFAULT_TOP_K if sequence.candidate_ids is None else sequence.candidate_ids.shape[1]


@dataclass(frozen=True)
class Rows:
    """Rows of one table about the output tokens of one sequence.

    Attributes:
        sequence: what was scored.
        columns: columns of the table by name, one entry a row, as `schema.record_batch` takes them; what a backend
            cannot know is missing. Ids of run and request, output index and position are filled in. A step_id
            counts from 0 in each batch.
        table: 'tokens' (a sequence's rows all at once), 'hidden' or 'logits' (in any number of pieces).
        first: the output index of the first row.
        request: beside rows of 'tokens', columns of `requests` that differ from the recorded ones.
        outcome: beside rows of 'tokens', columns of `outcomes` that differ from the recorded ones.
    """

    sequence: Sequence
    columns: Mapping[str, Any]
    table: str = "tokens"
    first: int = 0
    request: Mapping[str, Any] = field(default_factory=dict)
    outcome: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRows:
    """Rows about a run as a whole: of `steps` or `events`.

    Attributes:
        run_id: the parent's run that the scored sequences belong to.
        columns: columns of the table by name, one entry a row; the run's id is filled in.
        table: the table.
    """

    run_id: str
    columns: Mapping[str, Any]
    table: str


@dataclass(frozen=True)
class BatchLimits:
    """How large a batch is that a backend is given.

    Attributes:
        num_tokens: most input tokens; a longer sequence makes a batch of its own.
        num_sequences: most sequences.
        of_one_run: sequences of one batch belong to one run of the parent.
    """

    num_tokens: int | None = None
    num_sequences: int | None = None
    of_one_run: bool = False


class Backend(ABC):
    """Scores recorded tokens under one model, software and precision.

    Attributes:
        options_type: a frozen dataclass: the backend's own options, all with defaults.
        keeps: what it can keep besides figures and candidates: 'hidden', 'logits'.
        draws: what it makes of `Kept.free`: 'engine', 'coupled'.
        in_process: it computes in the process that opens it, so that a cluster can have one in each of its workers.
        mode: 'prefill' or 'decode'; None where neither says anything.
        vocab_size: entries of a logits row; None where it cannot be known.
        max_num_tokens: the longest sequence the model takes; None where there is no limit.
        batch_limits: how large its batches are; batches are planned before the first is scored.
        adapters: names of the LoRA adapters that it can score with; None where it does not choose them itself.
        peak_bytes: most memory that a process of its own has held so far; 0 where it has none.
    """

    options_type: ClassVar[type]
    keeps: ClassVar[frozenset[str]] = frozenset()
    draws: ClassVar[frozenset[str]] = frozenset()
    in_process: ClassVar[bool] = True
    mode: str | None = "prefill"
    vocab_size: int | None = None
    max_num_tokens: int | None = None
    batch_limits: BatchLimits = BatchLimits(num_tokens=2048)
    adapters: frozenset[str] | None = None
    peak_bytes: int = 0

    @classmethod
    @abstractmethod
    def open(cls, model: Path | None, options: Any, kept: Kept) -> Self:
        """Loads the model.

        Args:
            model: what was named as the model.
            options: an instance of `options_type`.
            kept: what is wanted of each token.

        Raises:
            ModelError: the model is missing, or cannot be scored exactly.
            ConfigError: an option has an impossible value.
            BackendUnavailableError: other software that it needs is missing, or does not answer.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Lets go of processes and connections; called once, also after a failure."""

    @classmethod
    def needs(cls, options: Any) -> frozenset[str]:  # noqa: ARG003
        """Returns what it needs of the parent besides tokens: 'hidden', 'weights', 'steps', 'batch_sizes'."""
        return frozenset()

    @classmethod
    def named_model(cls, model: Path | None, options: Any) -> Path | None:  # noqa: ARG003
        """Returns what `open` is given as the model, for a backend whose options may name it too.

        Raises:
            ConfigError: both name it.
        """
        return model

    @classmethod
    def completed(cls, options: Any, runs: collections.abc.Sequence[Mapping[str, Any]]) -> Any:  # noqa: ARG003
        """Returns options with what was left open filled in from the parent.

        Args:
            options: an instance of `options_type`, as given.
            runs: the parent's rows of `runs`, merged over the processes of each run.
        """
        return options

    @classmethod
    def described(cls, options: Any) -> dict[str, Any]:
        """Returns options as the trace tells them, and as they must be given again to go on; no secrets."""
        return dataclasses.asdict(options)

    @abstractmethod
    def description(self) -> Mapping[str, Any]:
        """Returns what the backend knows of the columns of `runs`."""

    @abstractmethod
    def score(self, batch: collections.abc.Sequence[Sequence]) -> Iterator[Rows | RunRows]:
        """Scores the sequences of one batch; what it yields depends on nothing else.

        Args:
            batch: at least one sequence; all token ids are below `vocab_size`.

        Yields:
            For each sequence its rows of `tokens`, in the order of the batch; its rows of other tables before them.
        """


def backend_names() -> list[str]:
    """Returns the names of all installed backends."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINTS)})


def load_backend(name: str) -> type[Backend]:
    """Returns the class of a backend, importing its software only now.

    Raises:
        ConfigError: no backend of this name is installed.
        BackendUnavailableError: its software is missing or broken.
    """
    found: list[EntryPoint] = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    if not found:
        raise ConfigError(f"there is no replay backend '{name}'{nearest(name, backend_names())}")
    try:
        backend: type[Backend] = found[0].load()
    except (ImportError, RuntimeError) as error:
        # transformers reports a torch extension that does not fit as RuntimeError.
        missing = f"'{error.name}' is not installed" if isinstance(error, ModuleNotFoundError) else str(error)
        raise BackendUnavailableError(
            f"replay backend '{name}' cannot be loaded: {missing}; "
            f"install its software, e.g. pip install 'tracekit[{name}]'"
        ) from error
    return backend


def build_options(name: str, options_type: type, given: Mapping[str, Any]) -> Any:
    """Returns an instance of a backend's options; what is given as None keeps its default.

    Raises:
        ConfigError: the backend has no such option.
    """
    known = [field.name for field in dataclasses.fields(options_type)]
    for option in given:
        if option not in known:
            raise ConfigError(f"replay backend '{name}' has no option '{option}'{nearest(option, known)}")
    return options_type(**{option: value for option, value in given.items() if value is not None})


def parsed_options(name: str, texts: Iterable[str]) -> dict[str, Any]:
    """Returns options of a backend from texts like 'NAME=VALUE', each value of the type that its field has.

    Raises:
        ConfigError: a text of another kind, an option that the backend does not have, or a value of another type.
        BackendUnavailableError: its software is missing or broken.
    """
    types = get_type_hints(load_backend(name).options_type)
    found: dict[str, Any] = {}
    for text in texts:
        option, equals, value = text.partition("=")
        option = option.replace("-", "_")
        if not equals:
            raise ConfigError(f"option '{text}' is not of the kind NAME=VALUE")
        if option not in types:
            raise ConfigError(f"replay backend '{name}' has no option '{option}'{nearest(option, types)}")
        kinds = get_args(types[option]) or (types[option],)
        if tuple in (get_origin(types[option]), types[option]):
            found[option] = (*found.get(option, ()), value)
        elif str in kinds:
            found[option] = value
        else:
            found[option] = _parsed(text, value, next(kind for kind in kinds if kind is not type(None)))
    return found


def _parsed(text: str, value: str, kind: type) -> Any:
    try:
        if kind is not bool:
            return kind(value)
        return {"true": True, "false": False}[value.lower()]
    except (KeyError, TypeError, ValueError):
        wanted = "true or false" if kind is bool else kind.__name__
        raise ConfigError(f"option '{text}': expected {wanted} after the equals sign") from None
