"""Scores on a server with an OpenAI-compatible API, by prompt logprobs or echo."""

from __future__ import annotations

import collections.abc
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from tracekit.errors import BackendUnavailableError, ConfigError, ModelError, nearest
from tracekit.replay.backends.base import Backend, BatchLimits, Kept, Rows, Sequence
from tracekit.replay.backends.http.access import read_key, server_address
from tracekit.replay.backends.http.answers import RefusedError, UnusableAnswerError
from tracekit.replay.backends.http.columns import NUM_FOR_MARGIN, columns_of
from tracekit.replay.backends.http.dialects import DIALECTS, FOUND_OUT, Dialect
from tracekit.replay.backends.http.probe import find_dialect
from tracekit.replay.backends.http.served import ServedModel, find_model
from tracekit.replay.backends.http.transport import Transport, all_of

_DEFAULT_KEY = "OPENAI_API_KEY"

# How a server is asked changes no figure: these may be others when a replay goes on.
_OF_NO_EFFECT = ("timeout", "retries", "api_key_env")

# Sequences of a batch for each that is under way: so many are waiting when one is answered.
_REFILLS = 4


@dataclass(frozen=True)
class HttpOptions:
    """Options of the backend.

    Attributes:
        url: where the server is, with or without '/v1'.
        dialect: how it is asked: 'vllm' by `prompt_logprobs`, 'openai' by `echo`, 'sglang' by SGLang's `/generate`
            (written to its documentation, not run here); by default the first of the former two that works.
        concurrency: most requests at a time.
        timeout: seconds that one answer may take.
        retries: how often a request is repeated that failed, was too many (429) or met an error of the server (5xx).
        api_key_env: the environment variable that holds the key, if there is one.
    """

    url: str | None = None
    dialect: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 4
    api_key_env: str = _DEFAULT_KEY


class HttpBackend(Backend):
    """A served model."""

    options_type: ClassVar[type] = HttpOptions

    def __init__(
        self, transport: Transport, dialect: Dialect, model: ServedModel, options: HttpOptions, kept: Kept
    ) -> None:
        self._transport = transport
        self._dialect = dialect
        self._model = model
        self._kept = kept
        # All tokens are sent, the last one too, and one is generated: input tokens are one fewer than are sent.
        self.max_num_tokens = None if model.max_model_len is None else model.max_model_len - 2
        self.batch_limits = BatchLimits(num_sequences=options.concurrency * _REFILLS)

    @classmethod
    def open(cls, model: Path | None, options: HttpOptions, kept: Kept) -> Self:
        _check(options)
        address = server_address(options.url)
        key = read_key(options.api_key_env, required=options.api_key_env != _DEFAULT_KEY)
        names = FOUND_OUT if options.dialect is None else (options.dialect,)
        transport = Transport(
            address, key, concurrency=options.concurrency, timeout=options.timeout, retries=options.retries
        )
        try:
            served = transport.run(find_model(transport, model))
            dialect = transport.run(find_dialect(transport, [DIALECTS[name] for name in names], served.name))
        except BaseException:
            transport.close()
            raise
        return cls(transport, dialect, served, options, kept)

    @classmethod
    def described(cls, options: HttpOptions) -> dict[str, Any]:
        return {name: value for name, value in asdict(options).items() if name not in _OF_NO_EFFECT}

    def close(self) -> None:
        self._transport.close()

    def description(self) -> Mapping[str, Any]:
        return {
            "engine": self._model.engine,
            "engine_version": self._model.engine_version,
            "model": self._model.source,
            "max_model_len": self._model.max_model_len,
            # A folder of this machine that has the model's name need not be what is served.
            "model_fingerprint": None,
            "tokenizer": None,
            "tokenizer_hash": None,
            "chat_template_hash": None,
        }

    def score(self, batch: collections.abc.Sequence[Sequence]) -> Iterator[Rows]:
        scored = self._transport.run(all_of(self._columns(sequence) for sequence in batch))
        for sequence, columns in zip(batch, scored, strict=True):
            yield Rows(sequence, columns, request={"lora": self._model.adapter, "lora_version": None})

    async def _columns(self, sequence: Sequence) -> dict[str, Any]:
        prompt, output = sequence.prompt_ids.tolist(), sequence.output_ids.tolist()
        num_kept = self._kept.num_candidates(sequence)
        num_asked = max(num_kept, NUM_FOR_MARGIN)
        try:
            body = self._dialect.scoring(self._model.name, prompt + output, num_asked)
            answer = await self._transport.post(self._dialect.path, body)
            scores = self._dialect.scores(answer, prompt + output, len(prompt), num_asked)
        except RefusedError as error:
            raise ModelError(
                f"{self._transport.address} refuses request '{sequence.request_id}' of {len(prompt + output)} tokens, "
                f"{num_asked} candidates each: {error}; give a server that takes it (--top-k asks for fewer candidates)"
            ) from None
        except UnusableAnswerError as error:
            raise BackendUnavailableError(
                f"{self._transport.address} answers request '{sequence.request_id}' with {error}, though not so "
                "before; see that the server still runs as it did"
            ) from None
        return columns_of(sequence.output_ids, scores, num_kept)


def _check(options: HttpOptions) -> None:
    if options.dialect is not None and options.dialect not in DIALECTS:
        raise ConfigError(f"dialect '{options.dialect}' is not known{nearest(options.dialect, DIALECTS)}")
    if options.concurrency < 1:
        raise ConfigError(f"concurrency must be at least 1, not {options.concurrency}")
    if options.retries < 0:
        raise ConfigError(f"retries must be at least 0, not {options.retries}")
    if not options.timeout > 0:
        raise ConfigError(f"timeout must be more than 0 seconds, not {options.timeout:g}")
