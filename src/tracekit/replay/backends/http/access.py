"""Where a server is, and the key it is asked with, which goes nowhere else."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tracekit.errors import ConfigError

__all__ = ["ApiKey", "read_key", "server_address"]

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class ApiKey:
    """A bearer token, or none.

    Attributes:
        variable: the environment variable that it comes from.
        advice: what to do where a server does not accept it.
    """

    variable: str
    _value: str = field(default="", repr=False)

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def hidden_in(self, text: str) -> str:
        """Returns a text that may quote the key, without it."""
        return text.replace(self._value, "***") if self._value else text

    @property
    def advice(self) -> str:
        if self._value:
            return f"the key in the environment variable {self.variable} is not accepted"
        return f"a key is wanted, but the environment variable {self.variable} is not set"


def read_key(variable: str, *, required: bool) -> ApiKey:
    """Returns the key that an environment variable holds.

    Raises:
        ConfigError: the name, or what it holds, cannot be one. Neither is quoted: a key may have been given for a name.
    """
    if not _VARIABLE.fullmatch(variable):
        raise ConfigError("api-key-env is the name of an environment variable that holds a key, not the key itself")
    value = os.environ.get(variable, "").strip()
    if required and not value:
        raise ConfigError("the environment variable that api-key-env names is not set; put the key into it")
    if not (value.isascii() and value.isprintable()):
        raise ConfigError("the environment variable that api-key-env names holds characters that no key has")
    return ApiKey(variable, value)


def server_address(url: str | None) -> str:
    """Returns the root of a server from its URL, with or without the '/v1' of its API.

    Raises:
        ConfigError: there is none, or one that would put a secret into the trace.
    """
    if not url:
        raise ConfigError("replay backend 'http' needs a server: give --url, e.g. --url http://localhost:8000")
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if "@" in url:
        raise ConfigError("a URL with a user or a password is not taken, as it stands in the trace; use --api-key-env")
    if not valid or "?" in url or "#" in url:
        shown = re.split(r"[?#]", url)[0]
        raise ConfigError(
            f"url '{shown}' is not the address of a server, such as http://localhost:8000 or https://host/v1"
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
