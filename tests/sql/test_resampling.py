"""The weights of the Poisson bootstrap: how often a replicate takes a block."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from factories import make_trace
from tracekit import connect

NUM_BLOCKS, NUM_REPLICATES = 1024, 1000


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """How often each replicate takes each block [block, replicate]."""
    path = Path(tmp_path_factory.mktemp("trace")) / "a"
    query = (
        "SELECT _copies(block, replicate) FROM range($1) AS blocks (block), range(1, $2 + 1) AS replicates (replicate)"
        " ORDER BY block, replicate"
    )
    with connect(make_trace(path), path) as session:
        rows = session.sql(query, [NUM_BLOCKS, NUM_REPLICATES]).arrow().column(0).to_numpy()
    return rows.astype(float).reshape(NUM_BLOCKS, NUM_REPLICATES)


def test_they_are_poisson_of_mean_1(weights: np.ndarray) -> None:
    for number in range(6):
        share = math.exp(-1) / math.factorial(number)
        error = math.sqrt(share * (1 - share) / weights.size)
        assert np.mean(weights == number) == pytest.approx(share, abs=5 * error)


def test_blocks_are_drawn_independently(weights: np.ndarray) -> None:
    """No eigenvalue of their covariance is beyond those of independent draws (Marchenko and Pastur, 1967).

    Blocks that were drawn together would move the interval of every figure at once.
    """
    covariance = np.cov(weights)
    edge = (1 + math.sqrt(NUM_BLOCKS / NUM_REPLICATES)) ** 2
    assert np.linalg.eigvalsh(covariance)[-1] < 1.05 * edge
    independent = np.random.default_rng(0).poisson(1, weights.shape)
    assert np.linalg.eigvalsh(np.cov(independent))[-1] < 1.05 * edge


def test_replicate_0_takes_each_once(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "a")
    with connect(path, path) as session:
        assert session.sql("SELECT DISTINCT _copies(block, 0) FROM range(1024) AS blocks (block)").rows() == [(1,)]
