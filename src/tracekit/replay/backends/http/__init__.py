"""Replay on an OpenAI-compatible server; the package is what the entry point names."""

from tracekit.replay.backends.http.backend import HttpBackend

__all__ = ["HttpBackend"]
