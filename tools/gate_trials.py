"""Whether the gate tells a planted difference from a repeat: pairs of real recordings through `tracekit gate`.

    python tools/gate_trials.py --model DIR [--trials 50] [--fault head] [--requests 8] [--tokens 16] [--out gate.json]

Each trial is a sample of its own: other prompts, other seeds. `tools/gate_rollout.py` records its requests several
times in one engine. Of these recordings the gate has to let pass:

    again    the same batch in another order, held against the floor of such a repeat
    parted   two batches, cut at random, for which kernels round otherwise, held against the floor of two such repeats

The planted difference, which it has to refuse, is a head in float32 instead of bfloat16, held against the first floor:

    head     the reference's recorded hidden states replayed through it; the tokens are the recorded ones
    engine   an engine of its own that has it (--fault engine), which samples its own tokens

Every pair goes through the command itself, with the same requirements: bounds in absolute numbers, and bounds relative
to the floor. Shown are how many pairs of each kind came out right, how often each requirement was not met, and what was
only within noise. Exits with 1 where one pair came out wrong.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracekit.analysis.gate import NOISE
from tracekit.replay import replay

REQUIREMENTS = (
    "k3_kl < 1e-4",
    "logprob_abs_diff_mean < 0.005",
    "k3_kl <= 2 * floor",
    "logprob_abs_diff_mean <= 2 * floor",
    "first_divergence_rate <= 2 * floor",
)
# The figure whose spread is shown.
SHOWN = "k3_kl"
FAULTS = ("head", "engine")
# Which repeats measure the floor of which recording.
NULLS = {"again": ["repeat"], "parted": ["parted-0", "parted-1"], "head": ["repeat"], "engine": ["repeat"]}
_EXIT_PASSED, _EXIT_FAILED = 0, 1


@dataclass
class Outcome:
    """What the gate said of all pairs of one kind.

    Attributes:
        kind: the recording that is held against the reference.
        expected: the exit code that is right.
        codes: how often it ended with which exit code.
        failed: how often each requirement was not met.
        noise: how often each requirement counted as met because of the floor.
        values: the shown figure of each pair.
        floors: its noise floor.
        wrong: the trials that came out wrong, with what the gate said.
    """

    kind: str
    expected: int
    codes: Counter[int] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    noise: Counter[str] = field(default_factory=Counter)
    values: list[float] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def num(self) -> int:
        return sum(self.codes.values())

    def add(self, trial: int, code: int, document: dict[str, Any]) -> None:
        """Takes in what the gate said of one pair."""
        self.codes[code] += 1
        rows = document["requirements"]
        self.failed.update(row["requirement"] for row in rows if not row["passed"])
        self.noise.update(row["requirement"] for row in rows if row["verdict"] == NOISE)
        shown = next(row for row in rows if row["name"] == SHOWN)
        # An infinite figure is a text in JSON.
        self.values.append(float(shown["value"]))
        self.floors.append(float(shown["floor"]))
        if code != self.expected:
            told = ", ".join(f"{row['name']} {row['value']} ({row['verdict']})" for row in rows)
            self.wrong.append(f"trial {trial}: {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--fault", choices=FAULTS, action="append", help="may be repeated [default: head]")
    parser.add_argument("--requests", type=int, default=8, help="of a trial")
    parser.add_argument("--tokens", type=int, default=16, help="at most, of a request")
    parser.add_argument("--folder", type=Path, help="where the traces go for the time being")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="tracekit-gate-", dir=args.folder) as folder:
        outcomes = run_trials(args.model, Path(folder), args.trials, args.fault or ["head"], args.requests, args.tokens)
    for line in report(outcomes):
        print(line)
    if args.out:
        args.out.write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=2) + "\n")
    sys.exit(1 if any(outcome.wrong for outcome in outcomes) else 0)


def run_trials(
    model: Path, folder: Path, num_trials: int, faults: Sequence[str], num_requests: int = 8, num_tokens: int = 16
) -> list[Outcome]:
    """Records the trials, plants the faults, holds every pair against the requirements.

    Raises:
        RuntimeError: an engine failed, or the gate could not compare.
    """
    size = ["--trials", str(num_trials), "--requests", str(num_requests), "--tokens", str(num_tokens)]
    _record(model, folder, size)
    outcomes = [Outcome(kind, _EXIT_PASSED) for kind in NULLS if kind not in FAULTS]
    outcomes += [Outcome(fault, _EXIT_FAILED) for fault in faults]
    if "engine" in faults:
        _record(model, folder, [*size, "--dtype", "float32"])
    for trial in range(num_trials):
        traces = folder / str(trial)
        reference = traces / "reference"
        for outcome in outcomes:
            other = traces / outcome.kind
            if outcome.kind == "head":
                replay(reference, other, backend="head", model=model, head_dtype="float32")
            outcome.add(trial, *_gate(reference, other, [traces / null for null in NULLS[outcome.kind]]))
        print(f"trial {trial + 1}/{num_trials}: {'as expected' if _right(outcomes, trial) else 'WRONG'}", flush=True)
    return outcomes


def report(outcomes: Iterable[Outcome]) -> list[str]:
    """Returns the figures, some lines for each kind."""
    lines = []
    for outcome in outcomes:
        what = "passed" if outcome.expected == _EXIT_PASSED else "refused"
        right = outcome.codes[outcome.expected]
        lines += [
            f"{outcome.kind}: {right} of {outcome.num} {what}  [{'met' if right == outcome.num else 'MISSED'}]",
            f"  {SHOWN} {min(outcome.values):.3g} to {max(outcome.values):.3g}, "
            f"floor {min(outcome.floors):.3g} to {max(outcome.floors):.3g}",
            *(
                f"  {text}: not met in {outcome.failed[text]}, within noise in {outcome.noise[text]}"
                for text in REQUIREMENTS
            ),
            *(f"  WRONG: {text}" for text in outcome.wrong),
        ]
    return lines


def _right(outcomes: Iterable[Outcome], trial: int) -> bool:
    return not any(text.startswith(f"trial {trial}:") for outcome in outcomes for text in outcome.wrong)


def _record(model: Path, folder: Path, options: list[str]) -> None:
    rollout = [sys.executable, str(Path(__file__).with_name("gate_rollout.py")), str(model), str(folder), *options]
    done = subprocess.run(rollout, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the engine ended with exit code {done.returncode}: {done.stderr[-4000:]}")


def _gate(a: Path, b: Path, nulls: Iterable[Path]) -> tuple[int, dict[str, Any]]:
    options = [word for text in REQUIREMENTS for word in ("--require", text)]
    options += [word for null in nulls for word in ("--null", str(null))]
    command = [sys.executable, "-m", "tracekit.cli.main", "gate", str(a), str(b), *options, "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (_EXIT_PASSED, _EXIT_FAILED):
        raise RuntimeError(f"the gate ended with exit code {done.returncode}: {done.stderr}")
    document: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, document


if __name__ == "__main__":
    main()
