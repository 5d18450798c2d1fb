"""Replays a trace: scores its recorded tokens under another software, model or precision, as a trace again."""

from tracekit.cluster import Cluster
from tracekit.replay.backends.base import parsed_options
from tracekit.replay.driver import Progress, ReplaySummary, replay

__all__ = ["Cluster", "Progress", "ReplaySummary", "parsed_options", "replay"]
