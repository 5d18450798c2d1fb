"""Dialects of servers, one file each; those that are tried where none is named come first, in this order."""

from tracekit.replay.backends.http.dialects.base import Dialect
from tracekit.replay.backends.http.dialects.openai import OpenAIDialect
from tracekit.replay.backends.http.dialects.sglang import SGLangDialect
from tracekit.replay.backends.http.dialects.vllm import VllmDialect

__all__ = ["DIALECTS", "FOUND_OUT", "Dialect"]

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (VllmDialect(), OpenAIDialect(), SGLangDialect())}
FOUND_OUT = ("vllm", "openai")
