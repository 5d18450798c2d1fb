"""What would change if a cause were fixed: a trainer's figures, predicted by taking away what the cause adds to d."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from tracekit.analysis import library

MISMATCH, BYPASS, DECOUPLED = "mismatch", "bypass", "decoupled"


@dataclass(frozen=True)
class Impact:
    """One metric before and after one cause is fixed.

    d' = d - δ of the cause; the tokens, and whatever else differs, stay as they are.

    Attributes:
        cause: its name; None for all causes that were found, fixed at once.
        mode: mismatch: of d itself. bypass: the trainer takes the rollout for its old policy (old := rollout), so the
            mismatch is in the ratio that the loss clips. decoupled: the trainer computes the old policy again, so the
            ratio is current / old, which no fix changes, and the mismatch acts through the weights old / rollout,
            which truncated importance sampling, masked importance sampling or IcePop bound.
        name: the metric, as in the catalogue, which has its bounds.
        before: as it is.
        after: as it would be; None where squares leave the range of doubles.
        num_tokens: tokens that it is of: those that enter the loss, where a trainer says which; of k2 and k3 those of
            finite d, as shares are.
        num_sequences: requests that these are from.
        assumed: whether the mode's policy ('current' of bypass, 'old' of decoupled) has no pass of its own, so that the
            compared side stands in for it, as at the first step after a rollout.
        descriptive: whether some of the tokens are not known to be drawn at a temperature above 0: the figure then
            does not estimate what a trainer would see.
    """

    cause: str | None
    mode: str
    name: str
    before: float | None
    after: float | None
    num_tokens: int
    num_sequences: int
    assumed: bool
    descriptive: bool


def impacts(connection: duckdb.DuckDBPyConnection) -> tuple[Impact, ...]:
    """Returns the impact of each cause, in the order of their names, and of all at once where there are several.

    A metric of clipping is there only where a trainer tells advantages; that of current / old only where both passes
    are in its trace.

    Args:
        connection: a session's, with the tables `explained` and `_deltas`.
    """
    library.load_temporarily(connection, library.EXPLANATION)
    return tuple(Impact(*row) for row in connection.execute("FROM _impact").fetchall())
