"""Replay with Hugging Face transformers; the package is what the entry point names."""

from tracekit.replay.backends.hf.backend import HfBackend

__all__ = ["HfBackend"]
