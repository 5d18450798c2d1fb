"""Notices writes into a model's parameters that passed by no hook, as far as that can be told from outside.

Torch counts in-place writes to a tensor (`_version`), through views and `detach()` too, but not those through
`.data`, NumPy or another process. A few values of each parameter are kept to compare, for these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

_NUM_SENTINELS = 8
_NUM_SAMPLES = 256
_UNCOUNTED = -1


class ParameterWatch:
    """Compares a model's parameters with what they were when they were last looked at.

    Nothing here waits for a GPU, but `changed` where it has to compare values.

    Args:
        model: the model.
        is_watched: whether to look at the parameter of that name; all by default.
        values: whether to keep samples of values. Where parameters have no fixed place, they tell nothing.
    """

    def __init__(
        self, model: nn.Module, is_watched: Callable[[str], bool] | None = None, *, values: bool = True
    ) -> None:
        self._model = model
        self._is_watched = is_watched
        self._values = values
        self._sentinels: list[tuple[nn.Module, str, int]] = []
        self.look()

    def look(self) -> None:
        """Takes the parameters as they are now for what they were."""
        places = list(self._places())
        chosen = {len(places) * i // _NUM_SENTINELS for i in range(_NUM_SENTINELS)} | {len(places) - 1}
        # The modules and not the parameters: a parameter may be replaced, and must not be kept alive here.
        self._sentinels = [
            (owner, key, version)
            for i, (_, owner, key) in enumerate(places)
            if i in chosen and (version := _version(owner, key)) != _UNCOUNTED
        ]
        self._versions = {name: _version(owner, key) for name, owner, key in places}
        self._samples = self._sample(places)

    def stirred(self) -> bool:
        """Whether torch counted a write to one of a few parameters; cheap enough for every step."""
        for owner, key, version in self._sentinels:
            parameter = owner._parameters.get(key)
            # Here, unlike in `_version`, nothing lets go of the interpreter: another thread would be let in each time.
            try:
                if parameter is None or parameter._version != version:
                    return True
            except RuntimeError:  # it was replaced by an inference tensor, which has no count
                return True
        return False

    def changed(self) -> list[str]:
        """Returns the parameters that were seen to be written to since the last look, and looks again."""
        versions, samples = self._versions, self._samples
        self.look()
        written = {name for name, version in self._versions.items() if version != versions.get(name, version)}
        return sorted(written | _differing(samples, self._samples))

    def _places(self) -> Iterator[tuple[str, nn.Module, str]]:
        """Yields (name, owner, key) of each parameter, tied ones once."""
        seen: set[int] = set()
        for prefix, owner in self._model.named_modules():
            for key, parameter in owner._parameters.items():
                name = f"{prefix}.{key}" if prefix else key
                if parameter is not None and id(parameter) not in seen and self._counts(name):
                    seen.add(id(parameter))
                    yield name, owner, key

    def _counts(self, name: str) -> bool:
        return self._is_watched is None or self._is_watched(name)

    def _sample(self, places: list[tuple[str, nn.Module, str]]) -> _Samples:
        pieces: dict[str, Tensor] = {}
        for name, owner, key in places if self._values else ():
            parameter = owner._parameters[key]
            piece = None if parameter is None else _some_bytes(parameter)
            if piece is not None:
                pieces[name] = piece
        lengths = {name: len(piece) for name, piece in pieces.items()}
        return lengths, torch.cat(list(pieces.values())) if pieces else None


_Samples = tuple[dict[str, int], Tensor | None]


def _version(owner: nn.Module, key: str) -> int:
    parameter = owner._parameters.get(key)
    return _UNCOUNTED if parameter is None or parameter.is_inference() else parameter._version


def _some_bytes(parameter: Tensor) -> Tensor | None:
    """Returns evenly spaced elements as bytes; None where the parameter has none that can be read like that."""
    if parameter.device.type == "meta" or not parameter.numel():
        return None
    try:
        # In the order of memory: a transposed weight is dense too.
        flat = parameter.detach().as_strided((parameter.numel(),), (1,))
        return flat[:: max(1, len(flat) // _NUM_SAMPLES)][:_NUM_SAMPLES].contiguous().view(torch.uint8)
    except (RuntimeError, NotImplementedError):
        return None


def _differing(before: _Samples, after: _Samples) -> set[str]:
    (lengths, old), (lengths_now, new) = before, after
    if old is None or new is None or lengths != lengths_now or old.device != new.device:
        return {name for name in lengths.keys() & lengths_now if lengths[name] != lengths_now[name]}
    unequal = (old != new).cpu()
    pieces = torch.split(unequal, list(lengths.values()))
    return {name for name, piece in zip(lengths, pieces, strict=True) if bool(piece.any())}
