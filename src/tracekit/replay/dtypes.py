"""Float dtypes by the names that options and traces use."""

from __future__ import annotations

import torch

from tracekit.errors import ConfigError, nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def named_dtype(option: str, name: str) -> torch.dtype:
    """Returns the dtype that an option names.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in DTYPES:
        raise ConfigError(f"{option} '{name}' is not known{nearest(name, DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
