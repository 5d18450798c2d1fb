"""Ray clusters: which one, and what there is room for. What runs there is said where it is."""

from tracekit.cluster.base import Cluster

__all__ = ["Cluster"]
