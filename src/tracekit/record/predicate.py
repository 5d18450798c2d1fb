"""A small language for choosing requests by their parameters: `temperature > 0 and top_p < 1`.

Comparisons (`<`, `<=`, `>`, `>=`, `==`, `!=`, `in`, `not in`, `is None`, `is not None`), `and`, `or`, `not`, numbers,
strings, lists, and the columns of `requests` that are named here. Nothing else is parsed, and nothing is evaluated
by Python itself.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tracekit.errors import ConfigError, nearest

_NUMBERS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "n",
    "max_tokens",
    "min_tokens",
    "num_logprobs",
    "num_prompt_logprobs",
    "num_prompt_tokens",
    "turn_index",
)
_TEXTS = ("group_id", "trajectory_id", "prompt_hash", "lora")
_LISTS_OF_NUMBERS = ("stop_token_ids", "allowed_token_ids")
# Compared with None only: what they hold is JSON.
_OBJECTS = ("logit_bias", "bad_words_token_ids", "structured_output")

# Name to kind. Columns that front end and worker both know, so that both come to the same answer.
NAMES: Mapping[str, str] = (
    dict.fromkeys(_NUMBERS, "number")
    | dict.fromkeys(_TEXTS, "text")
    | dict.fromkeys(_LISTS_OF_NUMBERS, "list of numbers")
    | dict.fromkeys(_OBJECTS, "object")
    | {"ignore_eos": "bool", "stop": "list of texts"}
)

_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}

Row = Mapping[str, Any]
_Test = Callable[[Row], bool]


@dataclass(frozen=True)
class _Value:
    """A name or a literal: what kind it is, and how to get it from a row."""

    kind: str
    of: Callable[[Row], Any]


def parse_predicate(text: str) -> Callable[[Row], bool]:
    """Returns the function of a row of `requests` that an expression stands for.

    A comparison by order, or with `in`, is false where the request's value is null.

    Raises:
        ConfigError: the expression is not of this language, or names what a request does not have.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or type(error).__name__
        raise ConfigError(f"where '{text}': {reason}; an example: temperature > 0 and top_p < 1") from None
    return _Parser(text).test(tree.body)


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text

    def test(self, node: ast.expr) -> _Test:
        if isinstance(node, ast.BoolOp):
            tests = [self.test(value) for value in node.values]
            if isinstance(node.op, ast.And):
                return lambda row: all(test(row) for test in tests)
            return lambda row: any(test(row) for test in tests)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            negated = self.test(node.operand)
            return lambda row: not negated(row)
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        value = self._value(node)
        if value.kind != "bool":
            raise self._error(node, f"is a {value.kind}, not true or false; compare it with something")
        return lambda row: bool(value.of(row))

    def _comparison(self, node: ast.Compare) -> _Test:
        operands = [node.left, *node.comparators]
        pairs = zip(operands, node.ops, operands[1:], strict=False)
        tests = [self._pair(left, operator, right) for left, operator, right in pairs]
        return lambda row: all(test(row) for test in tests)

    def _pair(self, left_node: ast.expr, operator: ast.cmpop, right_node: ast.expr) -> _Test:
        left, right = self._value(left_node), self._value(right_node)
        if isinstance(operator, ast.Is | ast.IsNot):
            if right.kind != "None":
                raise self._error(right_node, "stands after `is`, where only None may")
            wanted = isinstance(operator, ast.Is)
            return lambda row: (left.of(row) is None) == wanted
        if "None" in (left.kind, right.kind) or "object" in (left.kind, right.kind):
            node = left_node if left.kind in ("None", "object") else right_node
            raise self._error(node, "can only be tested with `is None` or `is not None`")
        if isinstance(operator, ast.In | ast.NotIn):
            return self._membership(left, right, right_node, found=isinstance(operator, ast.In))
        if left.kind != right.kind:
            raise self._error(right_node, f"is a {right.kind}, compared with a {left.kind}")
        if isinstance(operator, ast.Eq):
            return lambda row: bool(left.of(row) == right.of(row))
        if isinstance(operator, ast.NotEq):
            return lambda row: bool(left.of(row) != right.of(row))
        if left.kind not in ("number", "text"):
            raise self._error(left_node, f"is a {left.kind}, which has no order")
        compare = _ORDER[type(operator)]
        return lambda row: None not in (a := left.of(row), b := right.of(row)) and compare(a, b)

    def _membership(self, left: _Value, right: _Value, right_node: ast.expr, *, found: bool) -> _Test:
        if right.kind not in ("empty list", f"list of {left.kind}s"):
            raise self._error(right_node, f"is a {right.kind}, not a list of {left.kind}s")

        def test(row: Row) -> bool:
            value, values = left.of(row), right.of(row)
            return value is not None and values is not None and (value in values) == found

        return test

    def _value(self, node: ast.expr) -> _Value:
        if isinstance(node, ast.Name):
            if node.id not in NAMES:
                raise ConfigError(f"where '{self._text}': a request has no '{node.id}'{nearest(node.id, NAMES)}")
            name = node.id
            return _Value(NAMES[name], lambda row: row.get(name))
        if isinstance(node, ast.List | ast.Tuple):
            return self._list(node)
        constant = self._constant(node)
        return _Value(_kind(constant), lambda _: constant)

    def _list(self, node: ast.List | ast.Tuple) -> _Value:
        constants = [self._constant(entry) for entry in node.elts]
        kinds = {_kind(constant) for constant in constants}
        if len(kinds) > 1 or "None" in kinds:
            raise self._error(node, "mixes kinds; a list holds numbers only, or texts only")
        return _Value(f"list of {kinds.pop()}s" if kinds else "empty list", lambda _: constants)

    def _constant(self, node: ast.expr) -> Any:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._constant(node.operand)
            if _kind(value) != "number":
                raise self._error(node.operand, "is not a number")
            return -value
        if isinstance(node, ast.Constant) and (node.value is None or type(node.value) in (bool, int, float, str)):
            return node.value
        raise self._error(node, "is not part of this language: names, literals, comparisons, and, or, not, in")

    def _error(self, node: ast.expr, reason: str) -> ConfigError:
        piece = ast.get_source_segment(self._text.strip(), node) or ast.unparse(node)
        return ConfigError(f"where '{self._text}': '{piece}' {reason}")


def _kind(constant: Any) -> str:
    if constant is None:
        return "None"
    return {bool: "bool", int: "number", float: "number", str: "text"}[type(constant)]
