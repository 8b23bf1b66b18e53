"""Whole-number expressions inside templates: `a * b - c` evaluated and shown as `3 * 8 - 5 = 19`.

Only names, whole numbers, `+ - * /` and comparisons exist; division must come out whole. Parsed with
`ast`, so a template can never run code.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping

from acemath_training.errors import DataError

_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
    ast.GtE: operator.ge,
    ast.LtE: operator.le,
}
_NAME = re.compile(r"\b[a-z]+\b")


def evaluate(expression: str, values: Mapping[str, int]) -> int:
    """The value of `expression` with names taken from `values`.

    Raises:
        DataError: for an unknown name, another kind of syntax, or a division with a remainder.
    """
    return _value(ast.parse(expression, mode="eval").body, values, expression)


def holds(condition: str, values: Mapping[str, int]) -> bool:
    """Whether a comparison such as `a * b > c` is true.

    Raises:
        DataError: when `condition` is not one comparison of two expressions.
    """
    node = ast.parse(condition, mode="eval").body
    if not isinstance(node, ast.Compare) or len(node.ops) != 1 or type(node.ops[0]) not in _COMPARISONS:
        raise DataError(f"not a comparison of two expressions: {condition!r}")
    left = _value(node.left, values, condition)
    return _COMPARISONS[type(node.ops[0])](left, _value(node.comparators[0], values, condition))


def shown(expression: str, values: Mapping[str, int]) -> tuple[str, int]:
    """The expression with its numbers filled in and `= value` appended, and the value."""
    value = evaluate(expression, values)
    filled = _NAME.sub(lambda match: str(values[match.group()]), expression)
    return f"{filled} = {value}", value


def _value(node: ast.expr, values: Mapping[str, int], text: str) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name) and node.id in values:
        return values[node.id]
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, values, text), _value(node.right, values, text)
        if isinstance(node.op, ast.Div):
            return _exact_quotient(left, right, text)
        if type(node.op) in _ARITHMETIC:
            return _ARITHMETIC[type(node.op)](left, right)
    raise DataError(f"cannot evaluate {text!r}")


def _exact_quotient(left: int, right: int, text: str) -> int:
    if right == 0 or left % right:
        raise DataError(f"division with a remainder in {text!r}: {left} / {right}")
    return left // right
