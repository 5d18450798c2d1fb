"""Replays very many hidden states with the head of a checkpoint, and holds memory against its limit.

    python tools/replay_hidden.py --model DIR [--rows 1000000] [--folder DIR] [--out hidden.json]

The hidden states are random numbers, in bf16 as an engine has them, of as many entries as the head takes. The trace of
them needs about 2 bytes an entry on disk, and all of them at once would need 4 in memory. `tracekit replay --backend
head` runs in a process of its own, whose most memory the system tells at its end. Logprobs of rows all
over the trace are held against products in float64. Exits with 1 where memory, a row or a logprob misses its goal.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import torch

from measured import run_measured
from tracekit.store import Trace, TraceWriter, create_trace

MEMORY_GOAL_BYTES = 2 * 10**9
# Of a logprob, against the float64 product of the same bf16 numbers.
DIFFERENCE_GOAL = 1e-4
NUM_COMPARED = 200
NUM_OUTPUT_TOKENS = 250

Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Figures:
    """What a replay of many hidden states needed.

    Attributes:
        num_rows: of the parent.
        num_scored: rows of the new trace.
        seconds: of the replay's process.
        peak_bytes: its most memory.
        disk_bytes: of the parent.
        max_difference: of the compared logprobs.
    """

    num_rows: int
    num_scored: int
    seconds: float
    peak_bytes: int
    disk_bytes: int
    max_difference: float

    def faults(self) -> list[str]:
        """Returns what misses its goal."""
        found = []
        if self.num_scored != self.num_rows:
            found.append(f"{self.num_scored:,} of {self.num_rows:,} rows were scored")
        if self.peak_bytes >= MEMORY_GOAL_BYTES:
            found.append(f"memory reached {self.peak_bytes / 1e9:.2f} GB, {MEMORY_GOAL_BYTES / 1e9:g} GB are allowed")
        if not self.max_difference <= DIFFERENCE_GOAL:
            found.append(f"a logprob differs by {self.max_difference:.1e}, {DIFFERENCE_GOAL:g} is allowed")
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the traces go for the time being")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="tracekit-hidden-", dir=args.folder) as folder:
        figures = replay_hidden(args.model, Path(folder), args.rows)
    faults = figures.faults()
    print(
        f"{figures.num_scored:,} hidden states ({figures.disk_bytes / 1e9:.2f} GB on disk) scored in "
        f"{figures.seconds:,.0f} s, peak memory {figures.peak_bytes / 1e9:.2f} GB, largest difference of "
        f"{NUM_COMPARED} logprobs {figures.max_difference:.1e}: {'; '.join(faults) or 'all goals met'}"
    )
    if args.out:
        args.out.write_text(json.dumps(asdict(figures), indent=2) + "\n")
    sys.exit(1 if faults else 0)


def replay_hidden(model: Path, folder: Path, num_rows: int) -> Figures:
    """Writes a trace of random hidden states, replays it, and returns the figures.

    Args:
        model: a checkpoint whose logits are the product of hidden states and head, and nothing else.
        folder: where the traces go.
        num_rows: how many hidden states.

    Raises:
        RuntimeError: the replay failed.
    """
    weight_VH = _head(model)
    parent, out = folder / "parent", folder / "out"
    expected = _make_parent(parent, weight_VH, num_rows)
    head = ["--backend", "head", "--model", str(model), "--head-dtype", "float32"]
    command = [sys.executable, "-m", "tracekit.cli.main", "replay", str(parent), "-o", str(out), *head]
    used = run_measured(command)
    if used.returncode:
        raise RuntimeError(f"the replay ended with exit code {used.returncode}")
    return Figures(
        num_rows=num_rows,
        num_scored=Trace(out).num_rows("tokens"),
        seconds=used.seconds,
        peak_bytes=used.peak_bytes,
        disk_bytes=sum(path.stat().st_size for path in parent.rglob("*") if path.is_file()),
        max_difference=_max_difference(out, expected),
    )


def _head(model: Path) -> Float32s:
    """Returns the weight of the last projection [V, H]; the embedding's where it is tied."""
    with safetensors.safe_open(model / "model.safetensors", "pt") as tensors:
        name = "lm_head.weight" if "lm_head.weight" in set(tensors.keys()) else "model.embed_tokens.weight"
        weight: Float32s = tensors.get_tensor(name).float().numpy()
    return weight


def _make_parent(path: Path, weight_VH: Float32s, num_rows: int) -> dict[tuple[str, int], float]:
    """Writes the trace, and returns the logprobs of some rows by request and output index."""
    num_entries = weight_VH.shape[1]
    random = np.random.default_rng(0)
    compared = set(np.linspace(0, num_rows - 1, min(NUM_COMPARED, num_rows)).astype(int).tolist())
    kept: dict[tuple[str, int], tuple[int, Float32s]] = {}
    create_trace(path, "record")
    with TraceWriter(path, run_id="run", writer="w") as writer:
        for first in range(0, num_rows, NUM_OUTPUT_TOKENS):
            index = np.arange(min(NUM_OUTPUT_TOKENS, num_rows - first))
            token_ids = random.integers(len(weight_VH), size=len(index))
            numbers = torch.from_numpy(random.standard_normal((len(index), num_entries), np.float32))
            hidden_TH = numbers.bfloat16().float().numpy()
            for row in compared.intersection(range(first, first + len(index))):
                kept[f"r{first}", row - first] = int(token_ids[row - first]), hidden_TH[row - first]
            places = {"request_id": f"r{first}", "output_index": index, "position": index + 1}
            writer.append("requests", {"request_id": f"r{first}", "arrival_ns": first, "prompt_token_ids": [[0]]})
            writer.append("tokens", places | {"token_id": token_ids, "forced": False, "is_prompt": False})
            writer.append("hidden", places | {"hidden": hidden_TH, "source_dtype": "bfloat16"})
    return dict(zip(kept, _logprobs(weight_VH, list(kept.values())), strict=True))


def _logprobs(weight_VH: Float32s, rows: list[tuple[int, Float32s]]) -> list[float]:
    """Returns the logprob of each row's token, in float64."""
    logits_BV = np.array([hidden_H for _, hidden_H in rows], np.float64) @ weight_VH.T.astype(np.float64)
    logits_BV -= logits_BV.max(1, keepdims=True)
    sums = np.log(np.exp(logits_BV).sum(1))
    return [float(row[token] - total) for (token, _), row, total in zip(rows, logits_BV, sums, strict=True)]


def _max_difference(out: Path, expected: dict[tuple[str, int], float]) -> float:
    rows = Trace(out).read("tokens", ["request_id", "output_index", "logprob"])
    names, indices, logprobs = (rows.column(name).to_pylist() for name in rows.column_names)
    keys = zip(names, indices, strict=True)
    found = {key: logprob for key, logprob in zip(keys, logprobs, strict=True) if key in expected}
    if found.keys() != expected.keys():
        return float("inf")
    return max(abs(found[key] - value) for key, value in expected.items())


if __name__ == "__main__":
    main()
