"""Compares releases of vLLM on one rollout, and says what of their difference is what.

    python tools/versions/run.py --model DIR --engine 0.8.5=PYTHON --engine 0.18.1=PYTHON [--engine 0.32.0=PYTHON]
        [--folder bench-output/versions] [--requests 202] [--tokens 28] [--out docs/versions.md]

The releases are named the oldest first; the one of this interpreter comes last where it is not named. Traces stay in
the folder: a run that was interrupted goes on. --page writes the page anew from the figures of the last run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path

from comparison import compare
from page import page

from engines import Engine, Workshop


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--engine", action="append", default=[], metavar="VERSION=PYTHON", help="the oldest first")
    parser.add_argument("--folder", type=Path, default=Path("bench-output/versions"))
    parser.add_argument("--requests", type=int, help="only so many [default: all]")
    parser.add_argument("--tokens", type=int, default=28, help="of an output, on average")
    parser.add_argument("--wide-products", action="store_true", help="bf16 products in float32, without AVX-512")
    parser.add_argument("--page", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, help="write the page there")
    args = parser.parse_args()

    engines = [Engine(*text.partition("=")[::2]) for text in args.engine]
    own = importlib.metadata.version("vllm").partition("+")[0]
    if own not in [engine.version for engine in engines]:
        engines.append(Engine(own, sys.executable))
    args.folder.mkdir(parents=True, exist_ok=True)
    figures = args.folder / "figures.json"
    if not args.page:
        shop = Workshop(args.model, args.folder, args.wide_products)
        found = compare(shop, engines, args.requests, args.tokens)
        figures.write_text(json.dumps(found, indent=1))
    text = page(json.loads(figures.read_text()))
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
