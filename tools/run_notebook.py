"""Runs the notebooks of docs/ and writes their outputs into them.

    python tools/run_notebook.py [--check]    with --check: writes nothing, and fails where an output is out of date

The code cells of a notebook run in order in one namespace, in this process: no kernel is needed, and outputs are the
same in each run. An output is what a cell prints, and its last expression as text, or as a drawing where it has a
`_repr_svg_`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"


def run(text: str) -> str:
    """Returns a notebook's JSON with its outputs made anew."""
    notebook = json.loads(text)
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(cells, 1):
        cell["execution_count"] = count
        cell["outputs"] = _outputs("".join(cell["source"]), names, count)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _outputs(source: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), f"cell {count}", "exec"), names)
        value = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), names) if last else None
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": _lines(printed.getvalue())})
    if value is not None:
        draw = getattr(value, "_repr_svg_", None)
        data = {"image/svg+xml": _lines(draw())} if draw else {"text/plain": _lines(repr(value))}
        outputs.append({"data": data, "execution_count": count, "metadata": {}, "output_type": "execute_result"})
    return outputs


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where an output is out of date")
    check = parser.parse_args().check
    # Data frames are printed as wide as the terminal.
    os.environ["COLUMNS"] = "120"
    stale = 0
    for path in sorted(DOCS.glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        made = run(text)
        if made != text:
            stale += 1
            print(f"{path.name} is out of date" if check else f"wrote {path.name}")
            if not check:
                path.write_text(made, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
