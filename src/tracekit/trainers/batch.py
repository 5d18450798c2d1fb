"""One call's logprobs on their way to the trace, and what the source says about them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.errors import InputError
from tracekit.trainers.passes import Pass
from tracekit.trainers.source import Ints, Source, SourceRequest

COVERS = ("delivered", "sampled", "without_last")

_ADVICE = {
    "delivered": "",
    "sampled": "; covers='sampled' is for all sampled tokens, discarded ones included",
    "without_last": "; covers='without_last' is for trainers that drop the end-of-sequence token",
}


@dataclass(frozen=True)
class Row:
    """One row of a call: the tokens of a request, or of the turns of a conversation one after another.

    Attributes:
        names: its requests.
        start, count: where its values stand in the flat columns.
    """

    names: tuple[Any, ...]
    start: int
    count: int


@dataclass
class Batch:
    """What one call of `log` handed in.

    Attributes:
        of: the pass.
        rows: what is still to be written.
        columns: values of all rows, flat.
        covers: which tokens of a request have values.
        deadline: when a request that the source lacks counts as missing, by time.monotonic.
    """

    of: Pass
    rows: list[Row]
    columns: Mapping[str, npt.NDArray[Any]]
    covers: str
    deadline: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Part:
    """The values of one request: those at `take` of the flat columns belong to the tokens at `tokens`."""

    request: SourceRequest
    take: Ints
    tokens: slice


def num_expected(request: SourceRequest, covers: str) -> int:
    """Returns how many values a request must have."""
    delivered = request.num_sampled if request.num_delivered is None else request.num_delivered
    return {"delivered": delivered, "sampled": request.num_sampled, "without_last": max(delivered - 1, 0)}[covers]


def match(row: Row, source: Source, covers: str) -> list[Part] | None:
    """Returns where the values of a row belong; None where the source does not hold all of it yet.

    Raises:
        InputError: the source holds all of it, and has another number of tokens.
    """
    requests = list(_requests(row, source))
    if len(requests) < len(row.names):
        return None
    counts = [num_expected(request, covers) for request in requests]
    if sum(counts) != row.count:
        if not all(request.is_complete for request in requests):
            return None
        raise misfit(row, requests, covers)
    parts, start = [], row.start
    for request, count in zip(requests, counts, strict=True):
        stop = int(np.searchsorted(request.output_index, count))
        parts.append(Part(request, start + request.output_index[:stop], slice(0, stop)))
        start += count
    return parts


def check_known(row: Row, source: Source, covers: str) -> None:
    """Raises what `match` would, as far as that is known without reading.

    Raises:
        InputError: the number of values is not that of the tokens.
    """
    if covers == "sampled":
        return
    keys = [source.find(name) for name in row.names]
    delivered = [None if key is None else source.num_delivered(key) for key in keys]
    known = [num - (covers == "without_last") for num in delivered if num]
    if len(known) == len(keys) and sum(known) != row.count:
        raise _wrong_count(row, sum(known), covers, "")


def misfit(row: Row, requests: Sequence[SourceRequest], covers: str) -> InputError:
    """Returns the error for a row whose number of values is not that of its tokens."""
    expected = sum(num_expected(request, covers) for request in requests)
    others = [name for name in COVERS if name != covers]
    fitting = [name for name in others if sum(num_expected(one, name) for one in requests) == row.count]
    prompt = sum(int(one.position[0]) for one in requests if len(one.position))
    if fitting:
        hint = _ADVICE[fitting[0]]
    elif row.count in (expected + prompt, expected + prompt - 1):
        hint = f"; with the prompt's {prompt} tokens it would be {expected + prompt}: give a mask of output tokens"
    else:
        hint = ""
    return _wrong_count(row, expected, covers, hint)


def _wrong_count(row: Row, expected: int, covers: str, hint: str) -> InputError:
    if not hint and abs(row.count - expected) == 1:
        hint = (
            "; off by one: is the end-of-sequence token left out (covers='without_last')?"
            if row.count < expected
            else "; off by one: are logprobs shifted, or does the mask take in the last prompt token?"
        )
    what = f"request '{row.names[0]}'" if len(row.names) == 1 else f"requests {', '.join(map(repr, row.names))}"
    return InputError(f"{what}: {row.count} logprobs found, {expected} expected ({covers} tokens of the source){hint}")


def _requests(row: Row, source: Source) -> Iterator[SourceRequest]:
    for name in row.names:
        key = source.find(name)
        request = None if key is None else source.request(key)
        if request is None or (not len(request.output_index) and request.num_delivered is None):
            return
        yield request
