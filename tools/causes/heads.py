"""The last projection, worked out again from hidden states in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from arithmetic import Floats
from numpy.typing import NDArray
from side import Key, Side


class Projection:
    """A change to what the projection gives in float32, of recorded hidden states; rows of a request are made together.

    Args:
        side: whose hidden states.
        head: float32 [V, H].
    """

    def __init__(self, side: Side, head: NDArray[Any]) -> None:
        self._side = side
        self._head = head
        self._of = ""
        self._rows: dict[Key, Floats] = {}

    def __call__(self, key: Key, row: Floats) -> Floats:
        if self._of != key[0]:
            recording = self._side.recording
            keys = [(key[0], token["output_index"]) for token in recording.tokens[key[0]]]
            hidden = np.array([recording.hidden(other) for other in keys], np.float32)
            logits = (hidden @ self._head.T).astype(np.float64)
            off = [new - recording.logits(other) for other, new in zip(keys, logits, strict=True)]
            self._of, self._rows = key[0], dict(zip(keys, off, strict=True))
        # The difference, as the row may have been changed before the head.
        return row + self._rows[key]
