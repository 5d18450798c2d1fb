"""The benchmark of causes: plants known causes into real recordings, and asks `tracekit explain` what they are.

    python tools/causes/run.py --model DIR [--folder bench-output/causes] [--draws 2] [--pairs 20] [--nulls 20]
        [--only CAUSE] [--jobs 1] [--seed 0] [--out docs/causes.md]

Recordings are made once (`record.py`) and kept. A trial draws requests, plants one cause or two at random strengths,
writes both sides as traces, and runs the command on them as a user would. Plants share no code with the recorder's
arithmetic or with what explains: they are NumPy in float64, and rows of real engines that have the fault.

Results stand one a line in FOLDER/results-SEED.jsonl; a run that was interrupted goes on. --fresh begins anew.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
from base import Base, Plant
from numpy.random import Generator
from page import page, summary
from record import record
from registry import all_plants
from scoring import Outcome, score
from trial import Trial, compatible, paired, planted, repeated

# A trial: its kind, the plants in it (of a pair: those that it is drawn from), and its seed.
Task = tuple[str, tuple[str, ...], list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--folder", type=Path, default=Path("bench-output/causes"), help="of recordings and results")
    parser.add_argument("--requests", type=int, default=240, help="of a recording")
    parser.add_argument("--draws", type=int, default=2, help="trials of each plant")
    parser.add_argument("--pairs", type=int, default=20, help="trials of two plants")
    parser.add_argument("--nulls", type=int, default=20, help="trials without one")
    parser.add_argument("--only", action="append", metavar="PLANT", help="may be repeated [default: all]")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="forget results of earlier runs")
    parser.add_argument("--out", type=Path, help="write the page there")
    args = parser.parse_args()

    record(args.model, args.folder, args.requests, num_repeats=3)
    results = args.folder / f"results-{args.seed}.jsonl"
    if args.fresh:
        results.unlink(missing_ok=True)
    tasks = list(tasks_of(args.draws, args.pairs, args.nulls, args.only, args.seed))
    outcomes = run(args.folder, tasks, results, args.jobs)
    print("\n".join(summary(outcomes)))
    if args.out:
        args.out.write_text(page(outcomes), encoding="utf-8")


def tasks_of(draws: int, pairs: int, nulls: int, only: list[str] | None, seed: int) -> Iterator[Task]:
    """Yields all trials."""
    plants = all_plants()
    unknown = set(only or ()) - plants.keys()
    if unknown:
        sys.exit(f"no such plant: {', '.join(sorted(unknown))}; there are {', '.join(plants)}")
    names = [name for name in plants if not only or name in only]
    # By draws first, so that an interrupted run has some of each.
    for draw in range(draws):
        for name in names:
            yield "single", (name,), [seed, 1, draw, *name.encode()]
    for number in range(nulls):
        yield "null", (), [seed, 2, number]
    for number in range(pairs):
        yield "pair", tuple(names), [seed, 3, number]


def run(folder: Path, tasks: list[Task], results: Path, jobs: int) -> list[Outcome]:
    """Runs the trials that have no result yet; returns the results of all of them."""
    known = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        outcome = Outcome.from_json(line)
        known[tuple(outcome.seed)] = outcome
    missing = [task for task in tasks if tuple(task[2]) not in known]
    with results.open("a") as file:
        for number, outcome in enumerate(_outcomes(folder, missing, jobs)):
            known[tuple(outcome.seed)] = outcome
            file.write(outcome.as_json() + "\n")
            file.flush()
            print(f"{number + 1}/{len(missing)} {told(outcome)}", flush=True)
    return [known[tuple(seed)] for _, _, seed in tasks]


def told(outcome: Outcome) -> str:
    """Returns a trial's result on one line."""
    planted_ = " + ".join(
        expected.cause + ("" if expected.share is None else f" {expected.share:.0%}") for expected in outcome.expected
    )
    found = ", ".join(f"{named.cause} {named.share:.0%}" for named in outcome.found) or "nothing"
    return f"{planted_ or 'nothing'} -> {found}"


def _outcomes(folder: Path, tasks: list[Task], jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        for task in tasks:
            yield trial(folder, task)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(trial, [folder] * len(tasks), tasks)


@cache
def _base(folder: Path) -> Base:
    return Base(folder)


def trial(folder: Path, task: Task) -> Outcome:
    """Makes one trial and has it explained."""
    kind, names, seed = task
    chance = np.random.default_rng(seed)
    plants = all_plants()
    made_in = Path(tempfile.mkdtemp(prefix="tracekit-cause-", dir=folder))
    try:
        base = _base(folder)
        if kind == "null":
            made = repeated(base, chance, made_in)
        elif kind == "pair":
            made = _pair(base, names, chance, made_in)
        else:
            made = planted(base, [plants[name] for name in names], chance, made_in)
        return score(made, kind, seed)
    finally:
        shutil.rmtree(made_in)


def _pair(base: Base, names: tuple[str, ...], chance: Generator, folder: Path) -> Trial:
    """Makes a trial of two plants that can show beside each other."""
    fitting = _fitting(base, names)
    while True:
        # Two of which one always drowns the other make no trial.
        with contextlib.suppress(ValueError):
            return paired(base, fitting[int(chance.integers(len(fitting)))], chance, folder)


@cache
def _fitting(base: Base, names: tuple[str, ...]) -> list[tuple[Plant, ...]]:
    plants = all_plants()
    found = [two for two in combinations([plants[name] for name in names], 2) if compatible(base, two)]
    if not found:
        sys.exit("no two of these plants can show beside each other")
    return found


if __name__ == "__main__":
    main()
