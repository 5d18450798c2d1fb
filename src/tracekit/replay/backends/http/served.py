"""Which model a server serves, and what it tells of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracekit.errors import BackendUnavailableError, ConfigError, ModelError, nearest
from tracekit.replay.backends.http.answers import RefusedError, UnusableAnswerError, part_of
from tracekit.replay.backends.http.transport import Transport

__all__ = ["ServedModel", "find_model"]

# By what a server writes for the owner of its models.
_ENGINES = ("vllm", "sglang")


@dataclass(frozen=True)
class ServedModel:
    """A model of a server.

    Attributes:
        name: what requests call it.
        source: the model as it was named to the engine, where that is told; its name otherwise.
        adapter: the name of the LoRA adapter that it is, on top of that model; None where it is none.
        max_model_len: the longest sequence, the generated token included; None where it is not told.
        engine, engine_version: None where they are not known.
    """

    name: str
    source: str
    adapter: str | None
    max_model_len: int | None
    engine: str | None
    engine_version: str | None


async def find_model(transport: Transport, wanted: Path | None) -> ServedModel:
    """Returns the model of this name, or the only one.

    Raises:
        ModelError: the server has no such model.
        ConfigError: it has several, and none is named.
        BackendUnavailableError: it does not say what it serves.
    """
    try:
        answer = await transport.get("/v1/models")
        cards = _cards(answer)
        if not cards:
            raise UnusableAnswerError("no model")
    except (RefusedError, UnusableAnswerError) as error:
        raise BackendUnavailableError(
            f"{transport.address}/v1/models does not list what is served ({error}); "
            "give --url the address of an OpenAI-compatible server"
        ) from None
    # A path has lost what does not matter to it, such as a slash at the end of the name.
    names = list(cards) if wanted is None else [name for name in cards if Path(name) == wanted]
    if not names:
        raise ModelError(f"{transport.address} serves no model '{wanted}'{nearest(str(wanted), cards)}")
    if len(names) > 1:
        some = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        raise ConfigError(f"{transport.address} serves {len(names)} models; name one of them with --model: {some}")
    return await _described(transport, names[0], cards)


def _cards(answer: Any) -> dict[str, Any]:
    """Returns what is told of each model, by its name."""
    listed = part_of(answer, "data")
    named = [(part_of(card, "id"), card) for card in (listed if isinstance(listed, list) else [])]
    return {name: card for name, card in named if isinstance(name, str)}


async def _described(transport: Transport, name: str, cards: dict[str, Any]) -> ServedModel:
    # vLLM names an adapter's base model as its parent.
    base = part_of(cards[name], "parent")
    card = cards.get(base, cards[name])
    length = part_of(card, "max_model_len")
    owner = part_of(card, "owned_by")
    return ServedModel(
        name,
        source=str(part_of(card, "root") or part_of(card, "id")),
        adapter=name if base in cards else None,
        max_model_len=length if isinstance(length, int) else None,
        engine=owner if owner in _ENGINES else None,
        engine_version=await _vllm_version(transport) if owner == "vllm" else None,
    )


async def _vllm_version(transport: Transport) -> str | None:
    try:
        version = part_of(await transport.get("/version"), "version")
    except (RefusedError, UnusableAnswerError):
        return None
    return version if isinstance(version, str) else None
