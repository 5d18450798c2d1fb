"""Replay with llama.cpp; the package is what the entry point names."""

from tracekit.replay.backends.llamacpp.backend import LlamaCppBackend

__all__ = ["LlamaCppBackend"]
