"""Takes an engine's configuration into account when it is made, and when one of the engine's processes starts with it.

The process that makes the configuration settles everything: the merged settings, the session, the trace. It
writes them back into `additional_config`, and the engine's other processes take them from there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tracekit.errors import ConfigError
from tracekit.record import registry
from tracekit.record.completion import claim, open_claimed
from tracekit.record.config import RecordConfig, new_session
from tracekit.record.control import note_loaded
from tracekit.record.engines.attach import attach
from tracekit.record.engines.describe import alias_instance, instance_of
from tracekit.record.engines.own_settings import KEY, settings_of
from tracekit.record.settings import from_environment, from_options

logger = logging.getLogger("tracekit")

SOURCE = f"additional_config['{KEY}']"

# What API server processes need to know of the engine that another process has made: its id, and its session.
_ENGINE_VARIABLE = "_TRACEKIT_ENGINE"


def engine_made(vllm_config: Any) -> None:
    """Settles how an engine is recorded whose configuration was just made here; never raises, unless strict."""
    settings = settings_of(vllm_config)
    try:
        engine = _engine_of_this_server(vllm_config)
        if settings is not None:
            _adopt(vllm_config, settings, engine)
        else:
            config = registry.active_config()
            if config is not None:
                open_claimed(config.session)
        _tell_servers(vllm_config)
    except Exception as error:
        if _is_strict(settings):
            raise
        logger.error("tracekit: recorder disabled, the engine goes on: %s", error)
        _withdraw(vllm_config)


def engine_met(vllm_config: Any) -> None:
    """Attaches the recorder in a process that starts with an engine's settled settings."""
    settings = settings_of(vllm_config)
    try:
        if registry.is_adopted(instance_of(vllm_config)):
            return
        if isinstance(settings, Mapping) and "session" not in settings:
            # The configuration was not made by vLLM's own EngineArgs.
            engine_made(vllm_config)
            return
        config = RecordConfig(**from_options(settings, SOURCE))
        registry.adopt(instance_of(vllm_config), config)
        attach()
        note_loaded(Path(config.trace), config.session)
    except Exception as error:
        if _is_strict(settings):
            raise
        logger.error("tracekit: recorder disabled, the engine goes on: %s", error)


def _adopt(vllm_config: Any, settings: Any, engine: tuple[str, str] | None) -> None:
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{SOURCE} is {settings!r}, but an object of recorder settings was expected")
    stronger = registry.preferred() or from_environment(os.environ)
    given = {**from_options(settings, SOURCE), **stronger}
    if "trace" not in given:
        raise ConfigError(f"{SOURCE} names no trace; add 'trace', or leave {KEY} out of it")
    ours = "session" not in given and engine is None
    session = engine[1] if engine is not None else new_session()
    config = RecordConfig(**{"session": session, **given, "trace": str(Path(given["trace"]).absolute())})
    if ours:
        claim(config)
    open_claimed(config.session)
    vllm_config.additional_config = {**vllm_config.additional_config, KEY: asdict(config)}
    registry.adopt(instance_of(vllm_config), config)
    attach()
    note_loaded(Path(config.trace), config.session)


def _withdraw(vllm_config: Any) -> None:
    """Leaves nothing for the engine's other processes to try, and to fail at, again."""
    additional = getattr(vllm_config, "additional_config", None)
    if isinstance(additional, Mapping) and KEY in additional:
        vllm_config.additional_config = {name: value for name, value in additional.items() if name != KEY}
    else:
        registry.deactivate()
        os.environ.pop("TRACEKIT_RECORD", None)


def _tell_servers(vllm_config: Any) -> None:
    """Hands the engine's id to the API servers that this process starts: they make a configuration each."""
    if _server_rank(vllm_config) == -1:
        instance = instance_of(vllm_config)
        config = registry.config_of(instance)
        if config is not None:
            os.environ[_ENGINE_VARIABLE] = f"{instance} {config.session}"


def _engine_of_this_server(vllm_config: Any) -> tuple[str, str] | None:
    """Returns (id, session) of the engine that this API server serves, where another process has made it."""
    engine = os.environ.get(_ENGINE_VARIABLE)
    if engine is None or _server_rank(vllm_config) == -1:
        return None
    instance, _, session = engine.partition(" ")
    alias_instance(str(vllm_config.instance_id), instance)
    return instance, session


def _server_rank(vllm_config: Any) -> int:
    return int(getattr(vllm_config.parallel_config, "_api_process_rank", 0))


def _is_strict(settings: Any) -> bool:
    if isinstance(settings, Mapping) and settings.get("strict") is True:
        return True
    config = registry.active_config()
    return config is not None and config.strict
