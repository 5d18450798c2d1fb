"""The only code that touches trace files: layout, manifest, journals, parts, the writer and the reader."""

from tracekit.store.compaction import Compacted, compact
from tracekit.store.hold import Hold
from tracekit.store.manifest import Manifest, create_trace
from tracekit.store.reader import Trace
from tracekit.store.recover import recover
from tracekit.store.rollback import roll_back
from tracekit.store.writer import Checkpoint, TraceWriter

__all__ = [
    "Checkpoint",
    "Compacted",
    "Hold",
    "Manifest",
    "Trace",
    "TraceWriter",
    "compact",
    "create_trace",
    "recover",
    "roll_back",
]
