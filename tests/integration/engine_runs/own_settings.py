"""Engines that ask for the recorder themselves, one after the other: own_settings.py MODEL OUT TRACE.

The first one's settings are wrong; the two after it record into one trace.
"""

from __future__ import annotations

import sys
from pathlib import Path

from greedy import generate
from outputs import write


def main() -> None:
    model, out, trace = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    wrong = generate(model, additional_config={"tracekit": {"trace": f"{trace}-wrong", "topk": 5}})
    good = {"trace": trace, "top_k": 5, "append": True, "strict": True}
    first, second = (generate(model, additional_config={"tracekit": good}) for _ in range(2))
    write(out, first + second, wrong=[list(output.outputs[0].token_ids) for output in wrong])


if __name__ == "__main__":
    main()
