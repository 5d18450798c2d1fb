"""One adapter a vLLM generation: each translates its engine's step into the recorder's few calls."""

from tracekit.record.engines.attach import attach

__all__ = ["attach"]
