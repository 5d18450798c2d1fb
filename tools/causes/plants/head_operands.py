"""B's last projection takes float32 master weights, A's takes them rounded to bf16; both give out float32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from base import Pair, Plant, Truth
from heads import Projection
from numpy.random import Generator


class HeadOperands(Plant):
    name = cause = "head_operands"
    stage = 7
    base = "self"
    in_pairs = False
    num_requests = 30

    def plant(self, pair: Pair, chance: Generator) -> Iterator[Truth]:
        head = np.asarray(pair.base.head)
        # Any float32 within half a bf16 step would have been rounded to the recorded weight.
        _, exponent = np.frexp(head)
        step = np.ldexp(np.float32(1), exponent - 8)
        master = head + step * chance.uniform(-0.5, 0.5, head.shape).astype(np.float32)
        pair.a.add(Projection(pair.a, head))
        pair.a.run |= {
            "head_output_dtype": "float32",
            "head_weight_dtype": "bfloat16",
            "head_operand_dtype": "bfloat16",
        }
        pair.b.run |= {"head_output_dtype": "float32", "head_weight_dtype": "float32", "head_operand_dtype": "float32"}
        pair.a.keeps_rows = pair.b.keeps_rows = True
        pair.b.add(Projection(pair.b, master))
        yield Truth(self.cause)
