"""Keeps the package's scorers from running what a model wrote.

Several of them read an answer with ``eval``, of Python or of sympy. While they score, only arithmetic of a bearable
size is evaluated: literals and sympy's numbers, symbols and elementary functions; no attribute and no other call.
"""

from __future__ import annotations

import ast
import builtins
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

_LONGEST = 2000
"""Most characters of what is evaluated and is not a literal alone."""
_LARGEST_EXPONENT = 100
_LARGEST_OF_SUMS = 20
"""Exponent of a sum with symbols: sympy multiplies (x + y + 1)**99 out, for a minute."""
_MOST_POWERS = 2
"""Most powers of powers."""
_CALLS = {
    "Integer", "Float", "Rational", "Symbol", "sqrt", "exp", "log", "ln", "Abs", "sin", "cos", "tan", "cot", "sec",
    "csc", "asin", "acos", "atan", "acot", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
}  # fmt: skip
"""Not Pow, Mul and Add: in an answer they are written as operators, which are judged by their sides."""
_GROWING = ("exp", "sinh", "cosh")
"""Functions that count as powers."""
_HUGE = re.compile(r"e[+-]?\d{4}", re.IGNORECASE)
"""Numbers that would fill the memory where they are made exact, as in Rational ('1e999999999' )."""
_PLAIN = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.List, ast.Tuple, ast.BinOp, ast.UnaryOp, ast.operator,
    ast.unaryop,
)  # fmt: skip
_eval = builtins.eval


class Refused(Exception):
    """What was to be evaluated is no bearable arithmetic."""


@contextmanager
def guarded_eval() -> Iterator[None]:
    """While this context is open, ``eval`` refuses everything but arithmetic, with :class:`Refused`."""
    builtins.eval = _arithmetic
    try:
        yield
    finally:
        builtins.eval = _eval


def _arithmetic(source: Any, names: dict | None = None, local: dict | None = None, /) -> Any:
    if isinstance(source, CodeType):
        raise Refused
    text = str(source).strip()
    if len(text) > _LONGEST:  # as the list of numbers of a long item
        try:
            return ast.literal_eval(text)
        except (ValueError, RecursionError, MemoryError):
            raise Refused from None
    tree = ast.parse(text, mode="eval")
    if not all(map(_is_bearable, ast.walk(tree))):
        raise Refused
    return _eval(compile(tree, "an answer", "eval"), {**(names or {}), "__builtins__": {}}, local)


def _is_bearable(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return _is_plain_call(node) and _powers(node) <= _MOST_POWERS
    if isinstance(node, ast.Name):
        return not node.id.startswith("_")
    if _is_text(node):
        return not _HUGE.search(str(node.value).replace("_", ""))
    if isinstance(node, ast.BinOp):
        # 'x' * 10**9, ('x' + 'y') * 10**9, '%999999999d' % 1 and the same of lists would fill the memory.
        if any(isinstance(side, ast.List | ast.Tuple) or _is_text(side) for side in (node.left, node.right)):
            return False
        if _is_power(node):
            most = _LARGEST_OF_SUMS if _is_symbolic_sum(node.left) else _LARGEST_EXPONENT
            return _powers(node) <= _MOST_POWERS and all(_is_small(each, most) for each in ast.walk(node.right))
    return isinstance(node, _PLAIN)


def _is_plain_call(node: ast.Call) -> bool:
    """Whether a function that may be called is: without options, and a Float without a precision of its own."""
    name = node.func.id if isinstance(node.func, ast.Name) else None
    return name in _CALLS and not node.keywords and (name != "Float" or len(node.args) == 1)


def _is_symbolic_sum(node: ast.AST) -> bool:
    """Whether a base holds a sum, and a name that may be a symbol's."""
    parts = list(ast.walk(node))
    names = {each.id for each in parts if isinstance(each, ast.Name)}
    is_sum = any(isinstance(each, ast.Add | ast.Sub) for each in parts)
    return is_sum and not names <= {"Integer", "Float", "Rational"}


def _is_small(node: ast.AST, most: float) -> bool:
    """Whether a part of an exponent is neither a large number nor a power of its own."""
    if isinstance(node, ast.BinOp):
        return not isinstance(node.op, ast.Pow | ast.LShift | ast.Mult)
    if isinstance(node, ast.Call):
        return not _is_power(node)
    if isinstance(node, ast.Constant):
        # sympy writes Integer (9 ), Float ('1e9' ) and Symbol ('x' ).
        value = node.value
        if isinstance(value, str) and (value.isidentifier() or not any(c.isdigit() for c in value)):
            return True
        try:
            return math.fabs(float(value)) <= most
        except (TypeError, ValueError, OverflowError):
            return False
    return True


def _is_power(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _GROWING
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift)


def _powers(node: ast.AST) -> int:
    """How many powers are taken of one another."""
    return _is_power(node) + max(map(_powers, ast.iter_child_nodes(node)), default=0)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
