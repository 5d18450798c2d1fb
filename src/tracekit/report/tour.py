"""What `tracekit demo` shows: a pair of traces, their diff, and queries beside their answers."""

from __future__ import annotations

import shlex
from typing import BinaryIO

from tracekit import demo
from tracekit.analysis import connect
from tracekit.report.comparison import Comparison
from tracekit.report.formats import table

_INTRODUCTION = """\
A small model wrote 20 short answers on vLLM in bf16, with tracekit recording: greedy, at several temperatures, with
top-p, with a repetition penalty, five of them from the prefix cache. Then transformers scored the same tokens in fp32.
Both traces come with tracekit; no model is run now. How do the two differ?
"""


def write_tour(sink: BinaryIO) -> None:
    """Writes all of it: what the traces are, their diff, three queries, and how to go on.

    Args:
        sink: where it goes; on a terminal in its width and colours.
    """
    sink.write(_INTRODUCTION.encode())
    _say(sink, f"$ tracekit diff {_quoted(demo.ROLLOUT)} {_quoted(demo.FP32)}")
    with connect(demo.ROLLOUT, demo.FP32, tokenizer=demo.VOCABULARY) as session:
        sink.write(Comparison.of(session).to_table())
        for query in demo.queries():
            _say(sink, query.rstrip())
            table.write(session.sql(query), sink)
    _say(sink, "Go on asking:")
    words = [demo.ROLLOUT, demo.FP32, "--tokenizer", demo.VOCABULARY]
    sink.write(f"  tracekit shell {' '.join(_quoted(word) for word in words)}\n".encode())


def _say(sink: BinaryIO, text: str) -> None:
    sink.write(f"\n{text}\n\n".encode())
    sink.flush()


def _quoted(word: object) -> str:
    return shlex.quote(str(word))
