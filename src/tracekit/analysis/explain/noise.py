"""What repeats of one run would differ by: nothing smaller is a finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tracekit.analysis.explain.queries import query
from tracekit.analysis.explain.tokens import Floats, Tokens, rows
from tracekit.analysis.session import Session

# Of two figures of noise alone one is the larger, and by up to this factor where batches were cut otherwise.
FARTHEST = 3.0


@dataclass(frozen=True)
class Noise:
    """The noise.

    Attributes:
        mean_square: of d, in nat²: up to here a cause makes no more than repeats may.
        source: 'measured' between repeats, 'model' of one bf16 step, or 'none' where neither side has bf16 logits.
    """

    mean_square: float
    source: str


def measure_noise(nulls: Sequence[Session], tokens: Tokens) -> Noise:
    """Returns the noise between repeats; without any, what rounding logits to bf16 on both sides makes."""
    if nulls:
        found = [null.sql(query("mean_square")).rows()[0][0] for null in nulls]
        return Noise(FARTHEST * max((value for value in found if value is not None), default=0.0), "measured")
    basis = "processed" if tokens.known("a_processed", "b_processed") else "raw"
    model = rows(tokens.connection, query("modelled_noise"), [basis])
    return Noise(2 * float(model[0]["value"]), "model") if model else Noise(0.0, "none")


def squares_of_repeats(nulls: Sequence[Session], tokens: Tokens) -> Floats | None:
    """Returns the mean square of what A's repeats differ from A by at each compared token, float64 [N] in nat².

    NaN for a token that no repeat has after equal tokens. None where there is no repeat.
    """
    if not nulls:
        return None
    # In a pair of two repeats no token is one of A.
    tokens.connection.register("_repeated", pa.concat_tables(null.sql(query("repeats")).arrow() for null in nulls))
    squares = tokens.values(query("repeated"))
    tokens.connection.unregister("_repeated")
    return None if np.all(np.isnan(squares)) else squares
