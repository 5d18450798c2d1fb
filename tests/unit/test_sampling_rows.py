"""Sampling parameters as rows of `requests` have them."""

from __future__ import annotations

import json

import pytest

from tracekit.errors import TraceFormatError
from tracekit.sampling import SamplingParams


def test_from_row_reads_typed_and_json_columns() -> None:
    row = {
        "request_id": "r1",
        "temperature": 0.8,
        "top_p": 0.95,
        "top_k": 40,
        "min_p": None,
        "presence_penalty": 0.5,
        "frequency_penalty": None,
        "repetition_penalty": 1.1,
        "min_tokens": 4,
        "stop_token_ids": [2, 11],
        "logit_bias": json.dumps({"3": -1.5}),
        "allowed_token_ids": [1, 2, 3],
        "bad_words_token_ids": json.dumps([[5], [6, 7]]),
        "seed": 7,
    }
    assert SamplingParams.from_row(row) == SamplingParams(
        temperature=0.8,
        top_p=0.95,
        top_k=40,
        presence_penalty=0.5,
        repetition_penalty=1.1,
        min_tokens=4,
        stop_token_ids=(2, 11),
        logit_bias={3: -1.5},
        allowed_token_ids=(1, 2, 3),
        bad_words_token_ids=((5,), (6, 7)),
    )


def test_from_row_takes_nulls_as_neutral() -> None:
    assert SamplingParams.from_row({"request_id": "r1", "temperature": None, "logit_bias": None}) == SamplingParams()
    assert SamplingParams.from_row({}).is_neutral


@pytest.mark.parametrize(
    ("column", "value"),
    [("logit_bias", "{"), ("logit_bias", "[1]"), ("logit_bias", '{"a": 1}'), ("bad_words_token_ids", "[3]")],
)
def test_from_row_names_the_request_of_an_unreadable_column(column: str, value: str) -> None:
    with pytest.raises(TraceFormatError, match="request 'r1'"):
        SamplingParams.from_row({"request_id": "r1", column: value})
