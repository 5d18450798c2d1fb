"""Makes what the benchmark of causes plants its faults into: real recordings of one rollout, kept in a folder.

    python tools/causes/record.py --model DIR --folder bench-output/causes [--requests 240] [--repeats 3]

`rollout.py` records the rollout and repeats of it. Then the recorded tokens go through the same engine again, forced,
once as it is and once with each fault that takes another model to be real:

    forced        the same model
    perturbed-0   every weight matrix moved at random: other weights, as after training
    perturbed-1   the same, moved another way
    quantised     every weight matrix rounded to 8-bit integers, a scale a row
    rotated       rotary embeddings scaled for contexts that the model was not trained for

What is there already is kept. Whole rows of logits are then put into files of NumPy, two bytes an entry where they are
bf16, so that a trial reads a few of them without reading all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from base import FORCED, PERTURBED, REFERENCE
from numpy.typing import NDArray

from tracekit.store import Trace

QUANTISED, ROTATED = "quantised", "rotated"
WITH_LOGITS = (REFERENCE, FORCED, *PERTURBED, QUANTISED, ROTATED)
# Of the root mean square of a matrix. At 0.1 one token in ten changes.
PERTURBATION = 0.1
# As Llama 3 scales them: slow rotations are slower still, so that what is far away is off, the more the farther.
# Another base turns fast ones as well, by which every position but the first few is off alike.
ROPE_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 2048,
}

# Makes of a matrix, by its name, another one.
Change = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--folder", type=Path, default=Path("bench-output/causes"))
    parser.add_argument("--requests", type=int, default=240)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    record(args.model, args.folder, args.requests, args.repeats)


def record(model: Path, folder: Path, num_requests: int, num_repeats: int) -> None:
    """Makes all that is missing in a folder.

    Raises:
        RuntimeError: an engine or a replay failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "rollout.done").exists():
        rollout = Path(__file__).with_name("rollout.py")
        size = ["--requests", str(num_requests), "--repeats", str(num_repeats)]
        _run([sys.executable, str(rollout), str(model), str(folder), *size])
        (folder / "rollout.done").touch()
    _replay(model, folder, FORCED)
    for seed, name in enumerate(PERTURBED):
        _replay(_checkpoint(model, folder, name, perturbed(seed)), folder, name)
    _replay(_checkpoint(model, folder, QUANTISED, quantised), folder, QUANTISED)
    theta = json.loads((model / "config.json").read_text())["rope_theta"]
    overrides = json.dumps({"rope_parameters": {"rope_theta": theta, **ROPE_SCALING}})
    _replay(model, folder, ROTATED, "--engine-arg", f"hf_overrides={overrides}")
    for name in WITH_LOGITS:
        unpack(folder / name)
    if not (folder / "head.npy").exists():
        np.save(folder / "head.npy", head_of(model))


def head_of(model: Path) -> NDArray[np.float32]:
    """Returns the last projection's weights [V, H], of a model whose head is its embedding."""
    return _matrices(model)["model.embed_tokens.weight"]


def perturbed(seed: int) -> Change:
    """Returns what moves a matrix at random, seeded by its name too."""

    def change(name: str, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
        chance = np.random.default_rng([*name.encode(), seed])
        size = PERTURBATION * float(np.sqrt(np.mean(np.square(matrix, dtype=np.float64))))
        return matrix + size * chance.standard_normal(matrix.shape, np.float32)

    return change


def quantised(_: str, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns a matrix rounded to 8-bit integers with one scale a row."""
    scale = np.max(np.abs(matrix), axis=1, keepdims=True) / 127
    return np.rint(matrix / np.where(scale > 0, scale, 1)) * scale


def unpack(trace: Path) -> None:
    """Writes a trace's logits [N, V] and hidden states [N, H] to .npy files, and which token each row is of."""
    for table in ("logits", "hidden"):
        out = trace.with_suffix(f".{table}.npy")
        rows = Trace(trace)
        num_rows = rows.num_rows(table)
        if out.exists() or num_rows == 0:
            continue
        keys: list[tuple[str, int]] = []
        target: NDArray[np.generic] | None = None
        columns = ["request_id", "output_index", table, "source_dtype"]
        for part in rows.snapshot(table).parts:
            read = rows.read_part(table, part, columns)
            for batch in read.to_batches(max_chunksize=256):
                values = batch.column(table)
                width = len(values[0])
                flat = values.flatten().to_numpy().reshape(batch.num_rows, width)
                is_bf16 = batch.column("source_dtype")[0].as_py() == "bfloat16"
                if target is None:
                    dtype = np.uint16 if is_bf16 else np.float32
                    shape = (num_rows, width)
                    target = np.lib.format.open_memmap(f"{out}.new", mode="w+", dtype=dtype, shape=shape)
                # The upper half of a float32 is the bf16 that was widened to it.
                kept = (flat.view(np.uint32) >> 16).astype(np.uint16) if is_bf16 else flat
                target[len(keys) : len(keys) + batch.num_rows] = kept
                names, indices = batch.column("request_id").to_pylist(), batch.column("output_index").to_pylist()
                keys += zip(names, indices, strict=True)
        del target
        out.with_suffix(".json").write_text(json.dumps(keys))
        Path(f"{out}.new").rename(out)


def _checkpoint(model: Path, folder: Path, name: str, change: Change) -> Path:
    """Saves the model with every matrix but the embedding changed, in bf16."""
    import torch
    from safetensors.torch import save_file

    out = folder / "models" / name
    if not (out / "model.safetensors").exists():
        shutil.copytree(model, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
        tensors = {}
        for key, matrix in _matrices(model).items():
            is_changed = matrix.ndim == 2 and "embed" not in key
            changed = np.asarray(change(key, matrix) if is_changed else matrix, np.float32)
            tensors[key] = torch.from_numpy(changed).to(torch.bfloat16)
        save_file(tensors, out / "model.safetensors.new", metadata={"format": "pt"})
        (out / "model.safetensors.new").rename(out / "model.safetensors")
    return out


def _matrices(model: Path) -> dict[str, NDArray[np.float32]]:
    from safetensors.torch import load_file

    return {name: tensor.float().numpy() for name, tensor in load_file(model / "model.safetensors").items()}


def _replay(model: Path, folder: Path, name: str, *options: str) -> None:
    out = folder / name
    if out.exists():
        return
    command = [sys.executable, "-m", "tracekit.cli.main", "replay", str(folder / REFERENCE), "-o", str(out)]
    command += ["--backend", "vllm", "--model", str(model), "--mode", "decode", "--logits", "--hidden"]
    _run([*command, *options])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {done.returncode}: {done.stderr[-4000:]}")


if __name__ == "__main__":
    main()
