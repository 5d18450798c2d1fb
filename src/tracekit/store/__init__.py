"""The only code that touches trace files: layout, manifest, journals, parts, the writer and the reader."""

from tracekit.store.manifest import Manifest, create_trace
from tracekit.store.reader import Trace
from tracekit.store.recover import recover
from tracekit.store.writer import TraceWriter

__all__ = ["Manifest", "Trace", "TraceWriter", "create_trace", "recover"]
