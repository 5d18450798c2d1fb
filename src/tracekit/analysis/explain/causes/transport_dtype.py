"""Values that were rounded to bf16 or fp16 between the engine and whoever used them: they lie on that grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.analysis.explain.base import Cause, Claim, Question, Undecided
from tracekit.analysis.explain.exact import Exact, by_exact_deltas
from tracekit.analysis.explain.grids import BITS, lies_on, narrowest
from tracekit.analysis.explain.significance import Within

# A value in 16 bits is this near to what it was in full, in nat; what is farther is another value.
_NEAR = 0.02


@dataclass(frozen=True)
class TransportDtype(Cause):
    """Logprobs stored or carried in 16 bits."""

    name: str = "transport_dtype"
    title: str = "logprobs stored or carried in 16 bits"
    rung: int = 10
    next_step: str = "carry logprobs in float32 from the engine to the loss"

    def claim(self, question: Question) -> Claim | Undecided | None:
        tokens = question.tokens
        told: list[Exact] = []
        guessed: list[Exact] = []
        for side, other, sign in (("a", "b", -1), ("b", "a", 1)):
            dtype = narrowest(tokens[f"{side}_value"])
            if dtype is None:
                continue
            bits = BITS[dtype]
            # What the side itself recorded in full, or else the other's values: rounded alike they tell as much.
            for full in (f"{side}_raw", f"{side}_processed", f"{other}_value"):
                values = tokens[full]
                if not tokens.known(full) or lies_on(values, bits):
                    continue
                is_own = full[0] == side
                if is_own and np.nanmedian(np.abs(values - tokens[f"{side}_value"])) > _NEAR:
                    continue
                rounded = f"{side}_value::DOUBLE" if is_own else f"rounded_to_bits({full}::DOUBLE, {bits})"
                query = self.query(rounded=rounded, full=f"{full}::DOUBLE", sign=sign)
                (told if is_own else guessed).append(Exact.of(question, query, side=side, dtype=dtype))
        if not told:
            return by_exact_deltas(self, question, guessed)
        # A side that recorded its values in full tells what rounding did, however little that is beside other causes:
        # no chance puts all values of a request on such a grid.
        best = min(told, key=lambda one: float(np.sum(np.abs(question.residual - one.contributions))))
        return Claim(self, Within(np.ones((1, tokens.num_requests))), lambda _: best.variant())
