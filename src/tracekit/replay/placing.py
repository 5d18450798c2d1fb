"""Devices by the names that options and traces use."""

from __future__ import annotations

import torch

from tracekit.errors import ConfigError


def named_device(name: str | None) -> torch.device:
    """Returns the device that an option names; a GPU by default, where there is one.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(f"device '{name}' cannot be used: {' '.join(str(error).split())[:200]}") from error
    return device


def device_name(device: torch.device) -> str:
    """Returns what `runs` calls it."""
    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)
