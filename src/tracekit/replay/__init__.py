"""Replays a trace: scores its recorded tokens under another software, model or precision, as a trace again."""

from tracekit.replay.backends.base import parsed_options
from tracekit.replay.driver import Progress, ReplaySummary, replay
from tracekit.replay.workers.base import Cluster

__all__ = ["Cluster", "Progress", "ReplaySummary", "parsed_options", "replay"]
