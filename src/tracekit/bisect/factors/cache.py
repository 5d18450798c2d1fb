"""Prefix caching: whether prompts take over KV blocks of earlier requests."""

from tracekit.bisect.factors.engine_switch import EngineSwitch

FACTOR = EngineSwitch("cache", "prefix caching", "enable_prefix_caching", "prefix_caching")
