"""Makes the traces that `tracekit demo` shows: the real engine in bf16, and its replay in fp32.

    python tools/make_demo_traces.py --model DIR [--out src/tracekit/demo/traces]

The traces hold what the engine and the recorder wrote, unchanged. They are recorded in a folder of a fixed name, and
the model is called by its name alone, so that they tell nothing of the machine they were made on. Beside them stands
vocabulary.parquet, the texts of the tokens that occur in them, since the core has no tokenizer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tracekit import connect

TOOLS = Path(__file__).resolve().parent
PLACE = Path("/tmp/tracekit-demo")
MODEL = "SmolLM2-135M-Instruct"
NAMES = ("rollout", "fp32")
MOST_BYTES = 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--out", type=Path, default=TOOLS.parent / "src" / "tracekit" / "demo" / "traces")
    args = parser.parse_args()

    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    (PLACE / MODEL).symlink_to(args.model.resolve())
    rollout, fp32 = (f"{name}.trace" for name in NAMES)
    tracekit("record", "-o", rollout, "--", sys.executable, TOOLS / "demo_pair_rollout.py", MODEL)
    tracekit("replay", rollout, "-o", fp32, "--backend", "hf", "--model", MODEL, "--dtype", "float32")
    pq.write_table(_vocabulary(args.model), PLACE / "vocabulary.parquet", compression="zstd", compression_level=19)

    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    for name in (rollout, fp32):
        shutil.copytree(PLACE / name, args.out / name)
    shutil.copy(PLACE / "vocabulary.parquet", args.out)
    num_bytes = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {num_bytes:,} bytes")
    return 0 if num_bytes < MOST_BYTES else 1


def tracekit(*words: object) -> None:
    env = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"} | dict(os.environ)
    command = [sys.executable, "-m", "tracekit.cli.main", *(str(word) for word in words)]
    subprocess.run(command, cwd=PLACE, env=env, check=True)


def _vocabulary(model: Path) -> pa.Table:
    """Returns (token_id, text) of the tokens that occur in either trace."""
    rollout, fp32 = (str(PLACE / f"{name}.trace") for name in NAMES)
    used = "SELECT unnest(top_token_ids) AS id FROM a.tokens_all UNION SELECT unnest(top_token_ids) FROM b.tokens_all "
    used += "UNION SELECT token_id FROM a.tokens_all UNION SELECT unnest(prompt_token_ids) FROM a.requests"
    with connect(rollout, fp32, tokenizer=model) as session:
        return session.sql(f"FROM vocabulary SEMI JOIN ({used}) ON token_id = id ORDER BY token_id").arrow()


if __name__ == "__main__":
    sys.exit(main())
