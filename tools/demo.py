"""The main job on a real engine: record vLLM in bf16, replay in bf16 and fp32, compare, ask in SQL.

    python tools/demo.py --model DIR [--out demo-output]

Every step is a `tracekit` command, printed before it runs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
QUERIES = HERE / "demo"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    args = parser.parse_args()
    started = time.monotonic()

    rollout, bf16, fp32 = (args.out / f"{name}.trace" for name in ("rollout", "bf16", "fp32"))
    for trace in (rollout, bf16, fp32):
        # An earlier demo's; everything else in the folder is left alone.
        shutil.rmtree(trace, ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)

    say("A rollout of 24 prompts on vLLM in bf16, recorded")
    tracekit("record", "-o", rollout, "--", sys.executable, HERE / "demo_rollout.py", args.model)
    tracekit("inspect", rollout)
    say("The same tokens scored by transformers, in bf16 and in fp32")
    for dtype, trace in (("bfloat16", bf16), ("float32", fp32)):
        tracekit("replay", rollout, "-o", trace, "--backend", "hf", "--model", args.model, "--dtype", dtype)
    say("vLLM bf16 against transformers bf16: two engines, one precision")
    tracekit("diff", rollout, bf16)
    say("vLLM bf16 against transformers fp32: what precision adds")
    tracekit("diff", rollout, fp32)
    for path, text in ((p, p.read_text(encoding="utf-8")) for p in sorted(QUERIES.glob("*.sql"))):
        say(text.splitlines()[0].removeprefix("-- "))
        tracekit("query", rollout, fp32, "-", "--tokenizer", args.model, input_path=path)
    say(f"Done in {time.monotonic() - started:.0f} s. The traces are in {args.out}/: ask them something yourself")
    return 0


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def tracekit(*args: object, input_path: Path | None = None) -> None:
    """Runs one command of the command line, as a user would; ends the demo where it fails."""
    words = [str(arg) for arg in args]
    shown = " ".join(shlex.quote("python" if word == sys.executable else word) for word in words)
    print(f"$ tracekit {shown}" + (f" < {os.path.relpath(input_path)}" if input_path else ""), flush=True)
    env = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"} | dict(os.environ)
    stdin = input_path.open() if input_path else None
    try:
        code = subprocess.run([sys.executable, "-m", "tracekit.cli.main", *words], env=env, stdin=stdin).returncode
    finally:
        if stdin:
            stdin.close()
    if code:
        sys.exit(f"demo: `tracekit {words[0]}` ended with {code}")


if __name__ == "__main__":
    sys.exit(main())
