"""Gets what trainers compute into traces: live from a training loop, or from the files that they write."""

from tracekit.trainers.trace import TrainerTrace

__all__ = ["TrainerTrace"]
