"""Many small parts into few: sorted by request and position, in buckets that two traces share."""

from tracekit.store.compaction.compact import Compacted, compact
from tracekit.store.compaction.plan import is_bucketed
from tracekit.store.compaction.progress import Progress

__all__ = ["Compacted", "Progress", "compact", "is_bucketed"]
