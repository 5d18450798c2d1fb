"""What turns logits into probabilities: the sum of their exponentials, right to float32 rounding.

torch.softmax has the quickest exp on a CPU, but divides by a serial sum that is off by about 1e-5. That sum cancels
out of the ratio taken here. Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracekit.placement import scratch, widened

__all__ = ["logsumexp", "row_totals"]


def logsumexp(logits_BV: Tensor) -> Tensor:
    """Returns the float32 logsumexp of each row, [B]; NaN for rows that hold NaN or inf, or nothing but -inf."""
    logits_BV = widened(logits_BV, 2)
    return logits_BV.amax(1) + row_totals(logits_BV).log_()


def row_totals(logits_BV: Tensor) -> Tensor:
    """Returns the sum of exp(logit - max) of float32 rows, [B]."""
    probs_BV = torch.softmax(logits_BV, dim=1, out=scratch(logits_BV, 0))
    return probs_BV.sum(1) / probs_BV.amax(1)
