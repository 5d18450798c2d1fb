"""The language of `where`: what it says of a request, and what it refuses."""

from __future__ import annotations

import pytest

from tracekit.errors import ConfigError
from tracekit.record.predicate import NAMES, parse_predicate
from tracekit.schema import table

ROW = {
    "temperature": 0.8,
    "top_p": 1.0,
    "top_k": None,
    "seed": 7,
    "ignore_eos": True,
    "group_id": "g-1",
    "stop": ["\n", "END"],
    "stop_token_ids": [2, 5],
    "logit_bias": '{"3": 1.0}',
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("temperature > 0 and top_p < 1", False),
        ("temperature > 0 and top_p <= 1", True),
        ("temperature == 0 or seed == 7", True),
        ("not temperature == 0.8", False),
        ("0 < temperature < 1", True),
        ("0 < temperature < 0.5", False),
        ("temperature > -1", True),
        ("seed in (1, 7)", True),
        ("seed not in [1, 7]", False),
        ("seed in []", False),
        ("group_id == 'g-1'", True),
        ("group_id >= 'g' and group_id < 'h'", True),
        ("'END' in stop", True),
        ("5 not in stop_token_ids", False),
        ("ignore_eos", True),
        ("not ignore_eos", False),
        ("ignore_eos == False", False),
        ("top_k is None", True),
        ("seed is not None and logit_bias is not None", True),
        ("structured_output is None", True),
        ("True", True),
        # By order, or with in, nothing holds of a value that is not there.
        ("top_k > 5", False),
        ("not top_k > 5", True),
        ("top_k in (1, 2)", False),
        ("top_k not in (1, 2)", False),
        ("top_k != 5", True),
        ("3 in allowed_token_ids", False),
        (" ( temperature > 0\n and seed > 0 ) ", True),
    ],
)
def test_what_an_expression_says(text: str, expected: bool) -> None:
    assert parse_predicate(text)(ROW) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temprature > 0", r"a request has no 'temprature' \(did you mean 'temperature'\?\)"),
        ("prompt_text == 'x'", "a request has no 'prompt_text'"),
        ("temperature >", "invalid syntax"),
        ("", "an example: temperature > 0"),
        ("temperature", "'temperature' is a number, not true or false"),
        ("group_id > 3", "'3' is a number, compared with a text"),
        ("temperature == '0'", "''0'' is a text, compared with a number"),
        ("stop > stop", "has no order"),
        ("ignore_eos < True", "has no order"),
        ("temperature in stop", "is a list of texts, not a list of numbers"),
        ("temperature in (1, 'a')", "mixes kinds"),
        ("temperature in (1, None)", "mixes kinds"),
        ("temperature == None", "can only be tested with `is None`"),
        ("logit_bias == 'x'", "can only be tested with `is None`"),
        ("temperature is 0", "where only None may"),
        ("-group_id == 'x'", "not part of this language"),
        ("-'a' == 'x'", "is not a number"),
        ("temperature + 1 > 2", "not part of this language"),
        ("__import__('os').system('true') == 0", "not part of this language"),
        ("(lambda: True)()", "not part of this language"),
        ("temperature.real > 0", "not part of this language"),
        ("stop[0] == 'x'", "not part of this language"),
        ("[x for x in stop]", "not part of this language"),
        ("temperature if seed else top_p", "not part of this language"),
        ("(temperature := 3) > 1", "not part of this language"),
        ("f'{temperature}' == 'x'", "not part of this language"),
        ("b'x' == group_id", "not part of this language"),
        ("temperature > 0; seed", "invalid syntax"),
        ("(" * 500 + "seed" + ")" * 500, "where"),
        ("seed == \0", "where"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_predicate(text)


def test_names_are_columns_of_requests_of_their_kind() -> None:
    kinds = {
        "number": {"float64", "int32", "int64"},
        "text": {"string"},
        "bool": {"bool"},
        "object": {"json"},
        "list of numbers": {"list<int32>"},
        "list of texts": {"list<string>"},
    }
    types = {column.name: column.type for column in table("requests").columns}
    assert [name for name, kind in NAMES.items() if types.get(name) not in kinds[kind]] == []
