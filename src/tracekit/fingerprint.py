"""Short hashes that tell whether two runs had the same prompt, model, tokenizer or chat template.

schemas/README.md defines each of them byte by byte, so that other programs can compute the same.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

__all__ = [
    "adapter_fingerprint",
    "chat_template_hash",
    "model_fingerprint",
    "names_hash",
    "prompt_hash",
    "tokenizer_hash",
]

_NUM_SAMPLES = 64
_SAMPLE_BYTES = 4096
# The forms of tokenizer other than tokenizer.json, as glob patterns.
_TOKENIZER_FILES = ("*.model", "*.tiktoken", "merges.txt", "tekken.json", "vocab.json", "vocab.txt")


def prompt_hash(token_ids: Iterable[int]) -> str:
    """Returns the hash of a prompt: 32 hex digits.

    Args:
        token_ids: the prompt as the model sees it; integers, also those of NumPy.

    Raises:
        OverflowError: an id does not fit 32 bits.
    """
    ids = array("i", token_ids)
    if sys.byteorder == "big":
        ids.byteswap()
    return _blake2b(ids.tobytes()).hexdigest()


def names_hash(names: Iterable[str]) -> str:
    """Returns the hash of a set of tensor names: 32 hex digits; order and repetition do not matter."""
    distinct = sorted({name.encode() for name in names})
    return _blake2b(b"".join(name + b"\0" for name in distinct)).hexdigest()


def model_fingerprint(path: str | PathLike[str]) -> str | None:
    """Returns what identifies a checkpoint's configuration and weights: 32 hex digits.

    Weights are sampled, not read whole: a start-up must not wait for gigabytes. Two checkpoints that differ
    in few bytes only can have equal fingerprints; different fingerprints always mean different files.

    Args:
        path: a checkpoint folder, or a model in one file (GGUF). A hub id, or a folder that holds or shows nothing to
            hash, gives None.
    """
    return _checkpoint_fingerprint(Path(path), "config.json")


def adapter_fingerprint(path: str | PathLike[str]) -> str | None:
    """Returns what identifies a LoRA adapter: as `model_fingerprint`, with adapter_config.json as configuration."""
    return _checkpoint_fingerprint(Path(path), "adapter_config.json")


def _checkpoint_fingerprint(folder: Path, configuration: str) -> str | None:
    try:
        if folder.is_file():
            digest = _blake2b()
            _add_samples(digest, folder)
            return digest.hexdigest()
        config = _content(folder / configuration)
        weights = sorted(folder.glob("*.safetensors"), key=lambda file: file.name)
        if config is None and not weights:
            return None
        digest = _blake2b(config or b"")
        for file in weights:
            _add_samples(digest, file)
    except OSError:
        return None
    return digest.hexdigest()


def tokenizer_hash(path: str | PathLike[str]) -> str | None:
    """Returns what identifies a tokenizer: 32 hex digits, or None where `path` is no folder with one.

    Args:
        path: a folder with tokenizer.json, or with an older form of tokenizer files.
    """
    folder = Path(path)
    try:
        whole = _content(folder / "tokenizer.json")
        if whole is not None:
            return _blake2b(whole).hexdigest()
        files = sorted(
            {file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)}, key=lambda file: file.name
        )
        digest = _blake2b()
        for file in files:
            digest.update(_header(file) + file.read_bytes())
    except OSError:
        return None
    return digest.hexdigest() if files else None


def chat_template_hash(path: str | PathLike[str]) -> str | None:
    """Returns what identifies a chat template: 32 hex digits, or None where `path` is no folder with one.

    Args:
        path: a folder with chat_template.jinja, or with a `chat_template` in its tokenizer_config.json (of
            several named ones there, the one called 'default').
    """
    folder = Path(path)
    try:
        template = _content(folder / "chat_template.jinja")
        if template is not None:
            return _blake2b(template).hexdigest()
        config = json.loads(_content(folder / "tokenizer_config.json") or b"{}")
    except (OSError, ValueError):
        return None
    text = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(text, list):
        named = {entry.get("name"): entry.get("template") for entry in text if isinstance(entry, dict)}
        text = named.get("default")
    return _blake2b(text.encode()).hexdigest() if isinstance(text, str) else None


def _blake2b(content: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(content, digest_size=16)


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _header(file: Path) -> bytes:
    return f"\0{file.name}\0{file.stat().st_size}\0".encode()


def _add_samples(digest: hashlib.blake2b, file: Path) -> None:
    digest.update(_header(file))
    size = file.stat().st_size
    with file.open("rb") as source:
        if size <= _NUM_SAMPLES * _SAMPLE_BYTES:
            digest.update(source.read())
            return
        for index in range(_NUM_SAMPLES):
            source.seek((size - _SAMPLE_BYTES) * index // (_NUM_SAMPLES - 1))
            digest.update(source.read(_SAMPLE_BYTES))
