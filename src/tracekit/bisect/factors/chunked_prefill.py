"""Chunked prefill: whether a prompt may be spread over several steps."""

from tracekit.bisect.factors.engine_switch import EngineSwitch

FACTOR = EngineSwitch("chunked_prefill", "chunked prefill", "enable_chunked_prefill", "chunked_prefill")
