"""Records a live vLLM engine into a trace, without touching what it computes."""

from tracekit.record.config import RecordConfig
from tracekit.record.session import record_command, recording

__all__ = ["RecordConfig", "record_command", "recording"]
