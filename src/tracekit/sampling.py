"""Recomputes the distribution that tokens were drawn from, out of raw logits and sampling parameters.

Shapes: B rows, V vocabulary, N touched (row, token) entries, R rows that take part in a stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tracekit.errors import TraceFormatError
from tracekit.normaliser import logsumexp
from tracekit.placement import from_host
from tracekit.truncation import apply_cut, find_cut, truncates

__all__ = ["Processed", "SamplingParams", "TokenIds", "processed_logits", "truncate"]

TokenIds: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]

_GREEDY_BELOW = 1e-5
_NEG_INF = float("-inf")


@dataclass(frozen=True)
class SamplingParams:
    """What turns one request's raw logits into the distribution it samples from; the defaults change nothing.

    Attributes:
        temperature: below 1e-5 the request is greedy.
        top_p: nucleus mass, 1 keeps all.
        top_k: candidates kept, 0 or less keeps all.
        min_p: least probability kept, relative to the largest.
        presence_penalty: subtracted from the logit of every generated token.
        frequency_penalty: subtracted once for each time a token was generated.
        repetition_penalty: divides positive and multiplies negative logits of tokens in prompt or output.
        min_tokens: `stop_token_ids` are excluded until this many tokens were generated.
        stop_token_ids: token ids that end the request, end-of-sequence included.
        logit_bias: from token id to what is added to its logit.
        allowed_token_ids: the only ids that may be sampled; None or empty allows all.
        bad_words_token_ids: token-id sequences that may not be completed.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> SamplingParams:
        """Builds parameters from a row of the `requests` table; nulls and missing columns are neutral.

        Raises:
            TraceFormatError: a JSON column does not hold what the format says.
        """
        scalars = {name: row[name] for name in _SCALARS if row.get(name) is not None}
        bias = _from_json(row, "logit_bias") or {}
        bad_words = _from_json(row, "bad_words_token_ids") or ()
        allowed = row.get("allowed_token_ids")
        try:
            return cls(
                **scalars,
                stop_token_ids=tuple(int(i) for i in row.get("stop_token_ids") or ()),
                logit_bias={int(token_id): float(value) for token_id, value in bias.items()},
                allowed_token_ids=None if allowed is None else tuple(int(i) for i in allowed),
                bad_words_token_ids=tuple(tuple(int(i) for i in word) for word in bad_words),
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise TraceFormatError(f"{_of_request(row)}sampling parameters cannot be read ({error})") from error

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken; engines then report temperature 1 and no truncation."""
        return self.temperature < _GREEDY_BELOW

    @property
    def truncates(self) -> bool:
        """Whether min-p, top-k or top-p may exclude tokens."""
        return not self.is_greedy and (self.min_p > 0 or self.top_k > 0 or self.top_p < 1)

    @property
    def has_penalties(self) -> bool:
        """Whether tokens that occurred already change the logits."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def depends_on_output(self) -> bool:
        """Whether the processed logits depend on the tokens generated so far."""
        return self.has_penalties or self.min_tokens > 0 or bool(self.bad_words_token_ids)

    @property
    def only_scales(self) -> bool:
        """Whether, before truncation, the temperature alone changes the logits."""
        return not (
            self.has_penalties
            or (self.min_tokens > 0 and self.stop_token_ids)
            or self.logit_bias
            or self.allowed_token_ids
            or self.bad_words_token_ids
        )

    @property
    def is_neutral(self) -> bool:
        """Whether the processed logits are the raw ones."""
        return self.only_scales and not self.truncates and (self.temperature == 1 or self.is_greedy)


_SCALARS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
)


class Processed(NamedTuple):
    """Processed logits of B rows.

    Attributes:
        logits_BV: float32, -inf where a token is excluded.
        untruncated_logsumexp_B: float32, logsumexp after temperature and before min-p, top-k and top-p.
    """

    logits_BV: torch.Tensor
    untruncated_logsumexp_B: torch.Tensor


def processed_logits(
    logits_BV: torch.Tensor,
    params: Sequence[SamplingParams],
    prompt_ids: Sequence[TokenIds],
    output_ids: Sequence[TokenIds],
    drawn_ids_B: torch.Tensor | None = None,
) -> Processed:
    """Applies each row's sampling parameters as vLLM's V1 `Sampler` does, in its order and arithmetic.

    1. Convert to float32.
    2. Exclude what `allowed_token_ids` does not list.
    3. Exclude the last token of a bad word whose other tokens were just generated.
    4. Exclude stop tokens while fewer than `min_tokens` were generated.
    5. Add the logit bias.
    6. Apply penalties:
        a) repetition, over prompt and output
        b) frequency, over output
        c) presence, over output
    7. Divide by the temperature. Greedy rows keep temperature 1 and skip step 8.
    8. Truncate:
        a) min-p
        b) top-k
        c) top-p

    A stage works on the rows that need it only, so a row's result does not depend on the rows beside it. In vLLM it
    does in one corner: beside a top-p row, rows with top_p = 1 lose tokens whose probability underflows to 0.
    Grammars and custom logits processors are not known here. A device is not waited for.

    Args:
        logits_BV: raw logits, any float dtype; never modified, but returned as they are where they are float32
            and all rows are neutral.
        params: B rows' parameters.
        prompt_ids: B prompts.
        output_ids: for each of B rows the tokens generated before it.
        drawn_ids_B: the token drawn from each row, int64, where known: it stays before others that equal it.

    Returns:
        The processed logits. Up to step 8b they are bit-equal to the engine's own on a CPU; for 8c see `truncation`.
    """
    num_rows = logits_BV.shape[0]
    for name, given in (("params", params), ("prompt_ids", prompt_ids), ("output_ids", output_ids)):
        if len(given) != num_rows:
            raise ValueError(f"{name} has {len(given)} entries for {num_rows} rows of logits")
    processed = logits_BV.to(torch.float32)
    if processed is logits_BV and not all(row.is_neutral for row in params):
        processed = logits_BV.clone()

    _allow_only(processed, params)
    _exclude(processed, params, output_ids)
    _add_bias(processed, params)
    _penalise(processed, params, prompt_ids, output_ids)
    _divide_by_temperature(processed, params)
    untruncated_logsumexp_B = logsumexp(processed)
    _apply_min_p(processed, params)
    _apply_top_k_top_p(processed, params, drawn_ids_B, keep_ties=False)
    return Processed(processed, untruncated_logsumexp_B)


def truncate(
    logits_BV: torch.Tensor,
    params: Sequence[SamplingParams],
    drawn_ids_B: torch.Tensor | None = None,
    *,
    min_p_applied: bool,
    keep_ties: bool,
) -> Processed:
    """Applies step 8 of `processed_logits` to logits that a fused sampler was given, which never makes the result.

    Args:
        logits_BV: logits after temperature, any float dtype; not modified.
        params: B rows' parameters.
        drawn_ids_B: see `processed_logits`.
        min_p_applied: the logits are after min-p too. `untruncated_logsumexp_B` is then NaN for rows that have it.
        keep_ties: top-p keeps all that equal the last entry it keeps, as FlashInfer does; see `truncation`.
    """
    if len(params) != len(logits_BV):
        raise ValueError(f"params has {len(params)} entries for {len(logits_BV)} rows of logits")
    truncated = logits_BV.to(torch.float32, copy=True)
    untruncated_logsumexp_B = logsumexp(truncated)
    if min_p_applied:
        hidden = [row.truncates and row.min_p > 0 for row in params]
        untruncated_logsumexp_B.masked_fill_(from_host(hidden, torch.bool, logits_BV.device), torch.nan)
    else:
        _apply_min_p(truncated, params)
    _apply_top_k_top_p(truncated, params, drawn_ids_B, keep_ties=keep_ties)
    return Processed(truncated, untruncated_logsumexp_B)


def _allow_only(logits_BV: torch.Tensor, params: Sequence[SamplingParams]) -> None:
    for index, row in enumerate(params):
        if row.allowed_token_ids:
            allowed_N = _ints(_valid(row.allowed_token_ids, logits_BV.shape[1]), logits_BV)
            kept_N = logits_BV[index, allowed_N]
            logits_BV[index] = _NEG_INF
            logits_BV[index, allowed_N] = kept_N


def _exclude(logits_BV: torch.Tensor, params: Sequence[SamplingParams], output_ids: Sequence[TokenIds]) -> None:
    entries: list[tuple[int, int]] = []
    for index, (row, output) in enumerate(zip(params, output_ids, strict=True)):
        excluded = [word[-1] for word in row.bad_words_token_ids if _completes(word, output)]
        if len(output) < row.min_tokens:
            excluded.extend(row.stop_token_ids)
        entries.extend((index, token_id) for token_id in excluded if 0 <= token_id < logits_BV.shape[1])
    if entries:
        rows_N, ids_N = _ints(np.array(entries).T, logits_BV)
        logits_BV[rows_N, ids_N] = _NEG_INF


def _completes(word: tuple[int, ...], output: TokenIds) -> bool:
    """Whether the output so far ends with all but the last token of `word`."""
    prefix = word[:-1]
    if not word or len(prefix) > len(output):
        return False
    return not prefix or tuple(int(i) for i in output[len(output) - len(prefix) :]) == prefix


def _add_bias(logits_BV: torch.Tensor, params: Sequence[SamplingParams]) -> None:
    biased = [(index, *item) for index, row in enumerate(params) for item in row.logit_bias.items()]
    entries = [(index, token_id) for index, token_id, _ in biased if 0 <= token_id < logits_BV.shape[1]]
    if entries:
        rows_N, ids_N = _ints(np.array(entries).T, logits_BV)
        bias_N = _floats((bias for _, i, bias in biased if 0 <= i < logits_BV.shape[1]), logits_BV)
        logits_BV[rows_N, ids_N] += bias_N


def _penalise(
    logits_BV: torch.Tensor,
    params: Sequence[SamplingParams],
    prompt_ids: Sequence[TokenIds],
    output_ids: Sequence[TokenIds],
) -> None:
    rows, ids, counts = [], [], []
    for index, row in enumerate(params):
        if row.has_penalties:
            touched, num_generated = _occurrences(row, prompt_ids[index], output_ids[index], logits_BV.shape[1])
            rows.append(np.full(len(touched), index))
            ids.append(touched)
            counts.append(num_generated)
    if not rows:
        return
    rows_N, ids_N, counts_N = _ints(np.stack([np.concatenate(parts) for parts in (rows, ids, counts)]), logits_BV)
    repetition_N, frequency_N, presence_N = (
        _floats((getattr(row, name) for row in params), logits_BV)[rows_N]
        for name in ("repetition_penalty", "frequency_penalty", "presence_penalty")
    )
    touched_N = logits_BV[rows_N, ids_N]
    # vLLM multiplies by the rounded reciprocal: a division would differ in the last bit.
    touched_N *= torch.where(touched_N > 0, 1.0 / repetition_N, repetition_N)
    touched_N -= frequency_N * counts_N
    touched_N -= presence_N * (counts_N > 0)
    logits_BV[rows_N, ids_N] = touched_N


def _occurrences(
    row: SamplingParams, prompt: TokenIds, output: TokenIds, vocab_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the token ids that penalties touch, and how often each was generated."""
    generated, num_generated = np.unique(_valid(output, vocab_size), return_counts=True)
    if row.repetition_penalty == 1:
        return generated, num_generated
    touched = np.union1d(_valid(prompt, vocab_size), generated)
    counts = np.zeros(len(touched), np.int64)
    counts[np.searchsorted(touched, generated)] = num_generated
    return touched, counts


def _divide_by_temperature(logits_BV: torch.Tensor, params: Sequence[SamplingParams]) -> None:
    temperatures = [1.0 if row.is_greedy else row.temperature for row in params]
    if any(temperature != 1 for temperature in temperatures):
        logits_BV.div_(_floats(temperatures, logits_BV).unsqueeze(1))


def _apply_min_p(logits_BV: torch.Tensor, params: Sequence[SamplingParams]) -> None:
    rows = [index for index, row in enumerate(params) if row.truncates and row.min_p > 0]
    if rows:
        logits_RV, rows_R = _take(logits_BV, rows)
        probs_RV = torch.softmax(logits_RV, dim=-1)
        min_p_R = _floats((params[index].min_p for index in rows), logits_BV)
        least_R1 = probs_RV.amax(dim=-1, keepdim=True).mul_(min_p_R.unsqueeze(1))
        logits_RV.masked_fill_(probs_RV < least_R1, _NEG_INF)
        _put_back(logits_BV, logits_RV, rows_R)


def _apply_top_k_top_p(
    logits_BV: torch.Tensor, params: Sequence[SamplingParams], drawn_ids_B: torch.Tensor | None, *, keep_ties: bool
) -> None:
    vocab_size = logits_BV.shape[1]
    limits = [(row.top_k, row.top_p) for row in params]
    rows = [i for i, row in enumerate(params) if row.truncates and truncates(*limits[i], vocab_size)]
    if rows:
        logits_RV, rows_R = _take(logits_BV, rows)
        top_k, top_p = zip(*(limits[index] for index in rows), strict=True)
        drawn_ids_R = drawn_ids_B if drawn_ids_B is None or rows_R is None else drawn_ids_B[rows_R]
        apply_cut(logits_RV, find_cut(logits_RV, top_k, top_p, keep_ties=keep_ties), drawn_ids_R)
        _put_back(logits_BV, logits_RV, rows_R)


def _take(logits_BV: torch.Tensor, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns rows to be changed in place, and where to put them back: None where they are all."""
    if len(rows) == len(logits_BV):
        return logits_BV, None
    rows_R = _ints(rows, logits_BV)
    return logits_BV[rows_R], rows_R


def _put_back(logits_BV: torch.Tensor, logits_RV: torch.Tensor, rows_R: torch.Tensor | None) -> None:
    if rows_R is not None:
        logits_BV[rows_R] = logits_RV


def _valid(token_ids: TokenIds, vocab_size: int) -> npt.NDArray[np.int64]:
    ids = np.asarray(token_ids, dtype=np.int64)
    return ids[(ids >= 0) & (ids < vocab_size)]


def _ints(array: npt.ArrayLike, like: torch.Tensor) -> torch.Tensor:
    return from_host(np.asarray(array), torch.int64, like.device)


def _floats(values: Iterable[float], like: torch.Tensor) -> torch.Tensor:
    return from_host(list(values), torch.float32, like.device)


def _from_json(row: Mapping[str, Any], column: str) -> Any:
    text = row.get(column)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise TraceFormatError(f"{_of_request(row)}{column} is not JSON ({error})") from error


def _of_request(row: Mapping[str, Any]) -> str:
    return f"request '{row['request_id']}': " if row.get("request_id") else ""
