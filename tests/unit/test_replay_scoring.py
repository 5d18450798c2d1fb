"""Logits rows to columns of `tokens`, against NumPy in float64."""

from __future__ import annotations

import subprocess
import sys
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import reference
from tracekit.errors import ModelError, TraceFormatError
from tracekit.replay import scoring
from tracekit.replay.backends.base import Kept, Rows, Sequence
from tracekit.replay.scoring import SLICE_BYTES, score_rows, slice_rows, whole_rows

VOCAB = 300
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.7},
    "top_p": {"temperature": 1.0, "top_p": 0.8},
    "top_k": {"temperature": 0.9, "top_k": 15},
    "min_p": {"temperature": 1.2, "min_p": 0.03},
    "penalties": {
        "temperature": 1.0,
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.4,
        "presence_penalty": -0.6,
    },
    "all": {
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.001,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
    },
}


def make_sequence(
    name: str, num_output: int, *, num_candidates: int | None = 5, seed: int = 0, **request: Any
) -> Sequence:
    random = np.random.default_rng([seed, num_output])
    candidates = None
    if num_candidates is not None:
        candidates = random.integers(0, VOCAB, (num_output, num_candidates)).astype(np.int32)
    return Sequence(
        run_id="run",
        request_id=name,
        request={"request_id": name, "temperature": 1.0, **request},
        prompt_ids=random.integers(0, VOCAB, 6).astype(np.int32),
        output_ids=random.integers(0, VOCAB, num_output).astype(np.int32),
        candidate_ids=candidates,
    )


def make_logits(num_rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(3)) * 3).to(dtype)


def score(batch: list[Sequence], logits: torch.Tensor, num_slice_rows: int = 1000, **options: Any) -> list[Rows]:
    dtype, options["logits"] = options.pop("log_softmax_dtype", None), options.pop("keep_logits", False)
    with mock.patch.object(scoring, "slice_rows", return_value=num_slice_rows):
        return list(score_rows(batch, lambda start, stop: logits[start:stop], VOCAB, Kept(**options), dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_raw_columns_equal_numpy(dtype: torch.dtype) -> None:
    batch = [make_sequence("a", 4), make_sequence("b", 1), make_sequence("c", 7)]
    logits = make_logits(12, dtype)
    rows = logits.double().numpy()
    at = 0
    for sequence, scored in zip(batch, score(batch, logits), strict=True):
        assert scored.sequence is sequence
        for index, token_id in enumerate(sequence.output_ids.tolist()):
            row, columns = rows[at], {name: values[index] for name, values in scored.columns.items()}
            logprobs = reference.log_softmax(row)
            assert columns["token_id"] == token_id
            assert columns["logit"] == row[token_id]
            assert columns["logprob"] == pytest.approx(logprobs[token_id], abs=2e-6)
            assert columns["entropy"] == pytest.approx(-(np.exp(logprobs) * logprobs).sum(), abs=1e-5)
            assert columns["rank"] == reference.rank(row, token_id)
            assert columns["num_tied"] == (row == row[token_id]).sum() - 1
            assert columns["logit_min"] == row.min()
            assert columns["top_token_ids"].tolist() == reference.candidates(row, 5)
            assert columns["top_logits"].tolist() == row[columns["top_token_ids"]].tolist()
            assert columns["parent_top_logits"].tolist() == row[sequence.candidate_ids[index]].tolist()
            at += 1


@pytest.mark.parametrize("name", PARAMS)
def test_processed_columns_equal_numpy(name: str) -> None:
    sequence = make_sequence("a", 12, **PARAMS[name])
    logits = make_logits(12)
    # Some rows must score kept tokens, so that finite values are compared, and some excluded ones.
    sequence.output_ids[::2] = logits.argmax(1).numpy()[::2]
    (scored,) = score([sequence], logits)
    for index, token_id in enumerate(sequence.output_ids.tolist()):
        logprobs, kept_count, kept_mass = reference.processed(
            logits[index].numpy(), PARAMS[name], sequence.prompt_ids.tolist(), sequence.output_ids[:index].tolist()
        )
        assert scored.columns["processed_logprob"][index] == pytest.approx(logprobs[token_id], abs=5e-6)
        assert scored.columns["kept_count"][index] == kept_count
        assert scored.columns["kept_mass"][index] == pytest.approx(kept_mass, abs=2e-6)


def test_slices_of_any_size_give_the_same_bits() -> None:
    batch = [make_sequence(name, 5, **PARAMS[name]) for name in PARAMS]
    logits = make_logits(5 * len(batch), torch.bfloat16)
    whole = score(batch, logits)
    for num_slice_rows in (1, 3, 5, 34, 35, 36):
        for ours, theirs in zip(score(batch, logits, num_slice_rows), whole, strict=True):
            assert ours.columns.keys() == theirs.columns.keys()
            for column in ours.columns:
                np.testing.assert_array_equal(ours.columns[column], theirs.columns[column], err_msg=column)


def test_no_slice_is_larger_than_asked() -> None:
    asked: list[tuple[int, int]] = []
    logits = make_logits(9)

    def logits_of(start: int, stop: int) -> torch.Tensor:
        asked.append((start, stop))
        return logits[start:stop]

    with mock.patch.object(scoring, "slice_rows", return_value=4):
        list(score_rows([make_sequence("a", 4), make_sequence("b", 5)], logits_of, VOCAB, Kept()))
    assert asked == [(0, 4), (4, 8), (8, 9)]


@pytest.mark.parametrize("num_slice_rows", [1, 3, 1000])
def test_whole_rows_are_exact_copies(num_slice_rows: int) -> None:
    batch = [make_sequence("a", 4), make_sequence("b", 1), make_sequence("c", 3)]
    logits = make_logits(8, torch.bfloat16)
    found = score(batch, logits, num_slice_rows, keep_logits=True)
    assert [rows.sequence.request_id for rows in found if rows.table == "tokens"] == ["a", "b", "c"]
    tables = [rows.table for rows in found]
    assert tables == sorted(tables), "tokens come last"
    expected = {"a": logits[:4], "b": logits[4:5], "c": logits[5:]}
    for name, values in expected.items():
        pieces = [rows for rows in found if rows.table == "logits" and rows.sequence.request_id == name]
        assert [rows.first for rows in pieces] == np.cumsum(
            [0, *(len(r.columns["logits"]) for r in pieces[:-1])]
        ).tolist()
        np.testing.assert_array_equal(
            np.concatenate([rows.columns["logits"] for rows in pieces]), values.float().numpy()
        )
        assert {rows.columns["source_dtype"] for rows in pieces} == {"bfloat16"}
    middle = whole_rows(batch, "hidden", torch.arange(8.0).reshape(4, 2), start=3)
    assert [(rows.sequence.request_id, rows.first, rows.columns["hidden"].tolist()) for rows in middle] == [
        ("a", 3, [[0, 1]]),
        ("b", 0, [[2, 3]]),
        ("c", 0, [[4, 5], [6, 7]]),
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_log_softmax_in_a_narrow_dtype_lies_on_its_grid(dtype: torch.dtype) -> None:
    sequence = make_sequence("a", 12, **PARAMS["temperature"])
    logits = make_logits(12)
    (exact,), (rounded,) = score([sequence], logits), score([sequence], logits, log_softmax_dtype=dtype)
    for name in ("logprob", "logsumexp", "processed_logprob"):
        found, true = rounded.columns[name], exact.columns[name]
        np.testing.assert_array_equal(torch.from_numpy(found).to(dtype).float().numpy(), found)
        assert 0 < np.abs(found - true).max() < 0.1
    rows = torch.log_softmax(logits.to(dtype), 1)[torch.arange(12), torch.from_numpy(sequence.output_ids).long()]
    np.testing.assert_array_equal(rounded.columns["logprob"], rows.float().numpy())
    for name in ("logit", "rank", "entropy", "top_logits"):
        np.testing.assert_array_equal(rounded.columns[name], exact.columns[name])


def test_slice_rows_bound_memory_and_are_never_zero() -> None:
    assert slice_rows(49_152) * 49_152 * 4 <= SLICE_BYTES < (slice_rows(49_152) + 1) * 49_152 * 4
    assert slice_rows(10**9) == 1


def test_memory_does_not_grow_with_the_number_of_slices() -> None:
    code = (
        "import numpy, torch\n"
        "from tracekit.memory import peak_memory\n"
        "from tracekit.replay.backends.base import Kept, Sequence\n"
        "from tracekit.replay.scoring import SLICE_BYTES, score_rows, slice_rows\n"
        "torch.set_num_threads(1)\n"
        "peaks = []\n"
        "def logits_of(start, stop):\n"
        "    peaks.append(peak_memory())\n"
        "    return torch.randn(stop - start, 32_000)\n"
        "ids = numpy.arange(60 * slice_rows(32_000), dtype=numpy.int32) % 32_000\n"
        "list(score_rows([Sequence('run', 'r', {'temperature': 1.0}, ids, ids, None)], logits_of, 32_000, Kept()))\n"
        "print((peaks[-1] - peaks[9]) / SLICE_BYTES)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 5


@pytest.mark.parametrize(
    "unknown",
    [
        {"structured_output": '{"json": {}}'},
        {"temperature": None},
        {"sampling_params": '{"thinking_token_budget": 100}'},
        {"sampling_params": '{"logits_processors": ["mine"]}'},
    ],
)
def test_an_unknown_distribution_leaves_processed_columns_out(unknown: dict[str, Any]) -> None:
    plain = make_sequence("a", 2, sampling_params='{"temperature": 1.0, "watermarking": false}')
    known, not_known = score([plain, make_sequence("b", 2, **unknown)], make_logits(4))
    assert "processed_logprob" in known.columns
    assert not {"processed_logprob", "kept_count", "kept_mass"} & not_known.columns.keys()
    assert "logprob" in not_known.columns


@pytest.mark.parametrize("text", ["{", "[1]", "7"])
def test_unreadable_parameters_name_their_request(text: str) -> None:
    with pytest.raises(TraceFormatError, match="request 'odd': sampling_params is no JSON object"):
        score([make_sequence("odd", 1, sampling_params=text)], make_logits(1))


def test_each_sequence_keeps_as_many_candidates_as_its_parent() -> None:
    batch = [make_sequence("a", 2, num_candidates=3), make_sequence("b", 2, num_candidates=7)]
    assert [scored.columns["top_logits"].shape for scored in score(batch, make_logits(4))] == [(2, 3), (2, 7)]
    assert [scored.columns["parent_top_logits"].shape for scored in score(batch, make_logits(4))] == [(2, 3), (2, 7)]
    assert [scored.columns["top_logits"].shape for scored in score(batch, make_logits(4), top_k=4)] == [(2, 4), (2, 4)]


def test_a_parent_without_candidates_gets_twenty_and_no_parent_logits() -> None:
    (scored,) = score([make_sequence("a", 2, num_candidates=None)], make_logits(2))
    assert scored.columns["top_token_ids"].shape == (2, 20)
    assert scored.columns["parent_top_logits"] is None


def test_rows_with_fewer_candidates_get_shorter_lists() -> None:
    sequence = make_sequence("a", 3)
    assert sequence.candidate_ids is not None
    sequence.candidate_ids[0, 3:] = -1
    sequence.candidate_ids[1, :] = -1
    logits = make_logits(3)
    (scored,) = score([sequence], logits)
    first, second, third = scored.columns["parent_top_logits"]
    assert first == logits[0, sequence.candidate_ids[0, :3]].tolist()
    assert second is None
    assert third == logits[2, sequence.candidate_ids[2]].tolist()


def test_a_candidate_beyond_the_vocabulary_names_its_request() -> None:
    sequence = make_sequence("odd", 2)
    assert sequence.candidate_ids is not None
    sequence.candidate_ids[1, 2] = VOCAB
    with pytest.raises(ModelError, match=f"request 'odd' has token id {VOCAB} among its candidates"):
        score([make_sequence("a", 1), sequence], make_logits(3))
