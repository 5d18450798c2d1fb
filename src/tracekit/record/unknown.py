"""The number that stands for a logprob that nobody told, until rows become columns with nulls.

NaN is not it: an engine that reports NaN has said something, and that is recorded.
"""

from __future__ import annotations

import numpy as np

# The largest float32, which is no logprob.
UNKNOWN = float(np.finfo(np.float32).max)
