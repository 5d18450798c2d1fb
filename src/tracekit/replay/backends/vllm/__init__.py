"""Replay with vLLM, in an interpreter that the user names; the package is what the entry point names."""

from tracekit.replay.backends.vllm.backend import VllmBackend

__all__ = ["VllmBackend"]
