"""Whether numbers lie on the grid of a 16-bit type."""

from __future__ import annotations

import numpy as np

from tracekit.analysis.explain.tokens import Floats

# Bits behind the leading one.
BITS = {"bfloat16": 7, "float16": 10}
_NEARLY_ALL = 0.999
_MOST_READ = 200_000


def lies_on(values: Floats, bits: int) -> bool:
    """Returns whether nearly all numbers, float64 [N], have no more than so many bits behind the leading one.

    Numbers that are not finite, or nearly 0, count neither way. Of many, so many are looked at.
    """
    values = values[:: -(-len(values) // _MOST_READ) or 1]
    known = values[np.isfinite(values) & (np.abs(values) > 1e-4)]
    if not len(known):
        return False
    scaled = known * 2.0 ** (bits - np.floor(np.log2(np.abs(known))))
    return float(np.mean(scaled == np.round(scaled))) >= _NEARLY_ALL


def narrowest(values: Floats) -> str | None:
    """Returns the narrowest 16-bit type on whose grid numbers lie; None where on none."""
    return next((name for name, bits in BITS.items() if lies_on(values, bits)), None)
