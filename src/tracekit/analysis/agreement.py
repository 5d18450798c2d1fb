"""How near a replay came to its recording: in its batches, and in what its random numbers pick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tracekit.analysis.session import connect


@dataclass(frozen=True)
class BatchAgreement:
    """Counts over the positions that two traces share.

    Attributes:
        num_tokens: positions whose batch is known on both sides.
        num_same_batch: of those, with the same requests in the batch, in the same order, each with as many tokens.
        num_equal: of all positions, those whose raw logprobs are equal bit for bit.
    """

    num_tokens: int
    num_same_batch: int
    num_equal: int


def batch_agreement(a: Path | str, b: Path | str) -> BatchAgreement:
    """Compares the batches of two traces that align.

    Raises:
        AlignmentError: they do not.
    """
    with connect(a, b) as session:
        query = "SELECT count(same_batch), count_if(same_batch), count_if(d = 0) FROM pair_batches"
        ((num_tokens, num_same_batch, num_equal),) = session.sql(query).rows()
    return BatchAgreement(num_tokens, num_same_batch, num_equal)


def num_flips(a: Path | str, b: Path | str) -> dict[str | None, int]:
    """Returns by cause, as in the view `flips`, how many requests flip.

    Raises:
        AlignmentError: the traces do not align.
    """
    with connect(a, b) as session:
        return dict(session.sql("SELECT cause, count(*) FROM flips GROUP BY cause").rows())
