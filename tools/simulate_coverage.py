"""How often the library's 95% intervals hold the true value, in simulation: the table in docs/coverage.md.

Sequences of simulated log ratios go through the library's own SQL, many simulations side by side as groups. True values
come from NumPy, over a sample so large that its error does not matter. No two sequences of a row share an id, so that
each simulation throws its sequences into blocks of its own: what is alike in all of them is the weights of a block.

    python tools/simulate_coverage.py --simulations 1000
    python tools/simulate_coverage.py --scenario light --sequences 400
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import duckdb
import numpy as np
import pyarrow as pa

from tracekit.analysis import library, metrics

NAMES = ("kl", "k3_kl", "logprob_abs_diff_mean", "ppl_ratio", "effective_sample_size")
SEQUENCES = (24, 50, 100, 200, 400, 1000)
TOKENS = (4, 21)
_TRUTH_SEQUENCES = 2_000_000
_CHUNK = 100_000

Scales = Callable[[np.random.Generator, int], np.ndarray]
# How far apart both sides are varies from sequence to sequence; the scale's tail is the tail of k3.
SCENARIOS: dict[str, tuple[str, Scales]] = {
    "light": ("every sequence alike: d normal, scale 0.05", lambda _, n: np.full(n, 0.05)),
    "mixed": ("scales uniform between 0.02 and 0.1", lambda rng, n: rng.uniform(0.02, 0.1, n)),
    "skewed": ("scales log-normal, sigma 0.7", lambda rng, n: 0.05 * np.exp(rng.normal(0, 0.7, n))),
    "heavy": ("scales log-normal, sigma 1.2", lambda rng, n: np.minimum(0.03 * np.exp(rng.normal(0, 1.2, n)), 3)),
    "rare": (
        "one sequence in a hundred 20 times as far apart",
        lambda rng, n: np.where(rng.random(n) < 0.01, 1.0, 0.05),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--scenario", choices=SCENARIOS, action="append")
    parser.add_argument("--sequences", type=int, action="append")
    options = parser.parse_args()
    print("| scenario | sequences | " + " | ".join(f"{name}" for name in NAMES) + " |")
    print("|---|---|" + "---|" * len(NAMES))
    for scenario in options.scenario or SCENARIOS:
        truth = true_values(scenario)
        for num in options.sequences or SEQUENCES:
            print(f"simulating {scenario}, {num} sequences", file=sys.stderr)
            found = coverage(scenario, num, options.simulations, options.replicates, truth)
            cells = (_cell(*counts, options.simulations) for counts in found.values())
            print(f"| {scenario} | {num} | " + " | ".join(cells) + " |", flush=True)


def _cell(held: int, reliable: int, both: int, num_simulations: int) -> str:
    text = f"{100 * held / num_simulations:.1f}%"
    return (
        f"{text} (reliable {100 * reliable / num_simulations:.0f}%: {100 * both / reliable:.1f}%)" if reliable else text
    )


def coverage(
    scenario: str, num_sequences: int, num_simulations: int, num_replicates: int, truth: dict[str, float]
) -> dict[str, list[int]]:
    """Returns by metric how many intervals hold the true value, how many are called reliable, and how many are both."""
    counts = {name: [0, 0, 0] for name in NAMES}
    per_run = max(1, 20_000_000 // (num_sequences * num_replicates))
    for first in range(0, num_simulations, per_run):
        num = min(per_run, num_simulations - first)
        rng = np.random.default_rng([sum(scenario.encode()), num_sequences, first])
        simulation, sequence, d = _simulate(scenario, rng, num, num_sequences)
        sequence += first * num_sequences
        for name, low, high, sure in _intervals(simulation, sequence, d, num_replicates):
            held = low <= truth[name] <= high
            counts[name] = [sum(pair) for pair in zip(counts[name], (held, sure, held and sure), strict=True)]
    return counts


def true_values(scenario: str) -> dict[str, float]:
    """Returns the metrics of a population, from their definitions."""
    rng = np.random.default_rng(20_261_126)
    sums, ratios = np.zeros(6), 0.0
    for _ in range(0, _TRUTH_SEQUENCES, _CHUNK):
        _, sequence, d = _simulate(scenario, rng, 1, _CHUNK)
        num = np.bincount(sequence)
        ratios += np.exp(-np.bincount(sequence, d) / num).sum()
        sums += [d.size, -d.sum(), (np.expm1(d) - d).sum(), np.abs(d).sum(), np.exp(d).sum(), np.exp(2 * d).sum()]
    n, kl, k3, absolute, rho, squared = sums
    values = (kl / n, k3 / n, absolute / n, ratios / _TRUTH_SEQUENCES, rho * rho / (n * squared))
    return dict(zip(NAMES, map(float, values), strict=True))


def _simulate(
    scenario: str, rng: np.random.Generator, num_simulations: int, num_sequences: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns simulation, sequence and log ratio of each token, flat."""
    total = num_simulations * num_sequences
    lengths = rng.integers(*TOKENS, total)
    sequence = np.repeat(np.arange(total), lengths)
    scale = SCENARIOS[scenario][1](rng, total)
    shift = rng.normal(0, 0.5, total) * scale
    d = rng.normal(shift[sequence], scale[sequence])
    return sequence // num_sequences, sequence, d


def _intervals(
    simulation: np.ndarray, sequence: np.ndarray, d: np.ndarray, num_replicates: int
) -> list[tuple[str, float, float, bool]]:
    chosen = [metric for metric in metrics.catalogue() if metric.name in NAMES]
    given = pa.table({"simulation": simulation, "sequence": sequence, "d": d})
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
        connection.register("_given", given)
        connection.execute(
            "CREATE VIEW pairs AS SELECT simulation, 'run' AS a_run_id, sequence::VARCHAR AS a_request_id,"
            " false AS a_forced, false AS b_forced, d, NULL::DOUBLE AS d_processed, NULL AS argmax_equal,"
            " 0.0 AS a_logprob, d AS b_logprob, 1 AS a_token_id, 1 AS b_token_id, 0 AS output_index,"
            " NULL AS a_top1_margin, NULL AS b_top1_margin,"
            " NULL AS a_processed_logprob, NULL AS b_processed_logprob, NULL AS a_loss_mask, NULL AS b_loss_mask,"
            " NULL AS a_advantage, NULL AS b_advantage FROM _given"
        )
        connection.execute("CREATE SCHEMA a")
        connection.execute(
            "CREATE VIEW a.requests AS SELECT DISTINCT 'run' AS run_id, sequence::VARCHAR AS request_id,"
            " NULL::VARCHAR AS group_id, NULL::VARCHAR AS parent_request_id FROM _given"
        )
        connection.execute(
            "CREATE VIEW _aligned AS SELECT run_id AS a_run_id, request_id AS a_request_id, 1.0 AS temperature"
            " FROM a.requests"
        )
        connection.execute(library.definition("prelude/arithmetic"))
        connection.execute(library.module("metrics/arithmetic"))
        for name in ("metrics/sums", "metrics/metrics"):
            connection.execute(library.filled(name, chosen).replace("CREATE VIEW _find", "CREATE VIEW "))
        connection.execute(library.module("metrics/intervals"))
        return connection.execute(
            "SELECT name, low, high, reliable"
            " FROM metric_intervals_by(simulation, num_replicates := $1, num_blocks := 1024) WHERE basis = 'raw'",
            [num_replicates],
        ).fetchall()


if __name__ == "__main__":
    main()
