"""All plants, by name: each file of `plants` has one class."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

import plants
from base import Plant


def all_plants() -> Mapping[str, Plant]:
    """Returns an instance of each plant, by name, in the order of their stages."""
    found: dict[str, Plant] = {}
    for module in pkgutil.iter_modules(plants.__path__, "plants."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Plant) and value is not Plant:
                found[value.name] = value()
    return dict(sorted(found.items(), key=lambda item: (item[1].stage, item[0])))
