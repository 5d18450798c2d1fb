"""Async scheduling: whether a step is scheduled before the tokens of the one before are on the host."""

from tracekit.bisect.factors.engine_switch import EngineSwitch

FACTOR = EngineSwitch("async_scheduling", "async scheduling", "async_scheduling", "async_scheduling")
