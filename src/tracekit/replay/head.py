"""The last projection, from hidden states to logits, in the precision that is asked for.

Shapes: R rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tracekit.replay.dtypes import named_dtype


@dataclass(frozen=True)
class HeadDtypes:
    """Two things that are both called an fp32 head.

    Attributes:
        operands: what hidden states and weight are cast to before the product.
        output: what the product is given out in. Where it is wider than the operands, nothing is rounded after
            them; where it is narrower, the product is rounded once more.
    """

    operands: torch.dtype
    output: torch.dtype

    @classmethod
    def named(cls, operands: str, output: str | None) -> HeadDtypes:
        """Returns them from options; the output is as wide as the operands where it is not named."""
        return cls(named_dtype("head-dtype", operands), named_dtype("head-output-dtype", output or operands))


class Projection(nn.Module):
    """A linear layer in other dtypes than its own.

    Args:
        linear: a layer with `weight` [V, H], and perhaps `bias` [V].
        dtypes: of the product.
    """

    def __init__(self, linear: Any, dtypes: HeadDtypes) -> None:
        super().__init__()
        self.dtypes = dtypes
        # The product of two narrow numbers is exact in the wider dtype, which is what kernels accumulate in.
        self._computed_in = torch.promote_types(dtypes.operands, dtypes.output)
        self.weight: nn.Parameter
        self.bias: nn.Parameter | None
        self.set_weights(linear)

    def set_weights(self, linear: Any) -> None:
        """Takes over the weights of a linear layer."""
        self.weight = self._operand(linear.weight)
        self.bias = None if getattr(linear, "bias", None) is None else self._operand(linear.bias)

    def _operand(self, values: torch.Tensor) -> nn.Parameter:
        # Where the weight is tied to the embedding, that keeps its own dtype.
        operand = values.detach().to(self.dtypes.operands).to(self._computed_in)
        return nn.Parameter(operand, requires_grad=False)

    def forward(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        """Returns logits [R, V]; leading dimensions are those that were given."""
        operand_RH = hidden_RH.to(self.dtypes.operands).to(self._computed_in)
        # Dtypes that are asked for hold under autocast too.
        with torch.autocast(hidden_RH.device.type, enabled=False):
            return functional.linear(operand_RH, self.weight, self.bias).to(self.dtypes.output)
