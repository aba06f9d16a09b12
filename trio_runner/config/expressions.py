"""JMESPath expressions of a config: compiled, limited, and with functions that answers of detectors need."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from jmespath import compile as compile_jmespath
from jmespath.exceptions import JMESPathError, LexerError, ParseError
from jmespath.functions import Functions, signature
from jmespath.visitor import Options, TreeInterpreter

MAX_DEPTH: Final = 50
"""Of an expression, which JMESPath evaluates by recursion, and of a field in a body."""

_NUMBER: Final = re.compile(r"\s*-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?\s*")
_MAX_DIGITS: Final = 100


class ExpressionError(ValueError):
    """An expression is no JMESPath, or a value is not one that its functions take; one line of text."""


class Expression:
    """A compiled expression."""

    def __init__(self, text: str) -> None:
        """Raises ExpressionError: `text` is no JMESPath, calls an unknown function, or is nested too deeply."""
        self.text = text
        try:
            parsed: Any = compile_jmespath(text).parsed
        except (LexerError, ParseError) as error:
            position = min(error.lex_position, len(text))
            token = text[position : position + 20]
            where = f"at character {position + 1}, before {token!r}" if token else "it ends too early"
            raise ExpressionError(f"not valid JMESPath: {where}") from None
        except JMESPathError as error:
            raise ExpressionError(f"not valid JMESPath: {error}") from None
        except RecursionError:
            raise ExpressionError("nested too deeply") from None
        _check({"type": "expression", "children": [parsed]}, depth=0)
        self._tree = parsed
        self._interpreter = TreeInterpreter(Options(custom_functions=_Functions()))

    def of(self, value: Any) -> Any:
        """The part of a JSON value that the expression selects, None if there is none; raises ExpressionError."""
        try:
            return self._interpreter.visit(self._tree, value)
        except RecursionError:
            raise ExpressionError("nested too deeply") from None
        except ExpressionError:
            raise
        except (JMESPathError, ArithmeticError, TypeError, ValueError) as error:
            # The message of jmespath is not used: it repeats the whole value.
            name = getattr(error, "function_name", "")
            what = f"{name}()" if name else "a function"
            raise ExpressionError(f"{what} does not take the value that stands there") from None


def is_switched_off(text: str) -> bool:
    """Whether the expression is the literal null, by which a config switches a key of a preset off."""
    return text.strip() == "`null`"


def _check(tree: dict[str, Any], *, depth: int) -> None:
    """Refuse what would fail with every answer: an unknown function, or the wrong number of arguments."""
    if depth > MAX_DEPTH:
        raise ExpressionError("nested too deeply")
    children = [child for child in tree.get("children", ()) if isinstance(child, dict)]
    if tree["type"] != "function_expression":
        if any(child["type"] == "expref" for child in children):
            raise ExpressionError("& stands only before an argument of a function")
    else:
        name, table = tree["value"], _Functions.FUNCTION_TABLE
        if name not in table:
            raise ExpressionError(f"unknown function {name}(); known: {', '.join(sorted(table))}")
        wanted = table[name]["signature"]
        variadic = bool(wanted and wanted[-1].get("variadic"))
        if len(children) < len(wanted) or (len(children) > len(wanted) and not variadic):
            least = "at least " if variadic else ""
            raise ExpressionError(f"{name}() takes {least}{len(wanted)} arguments, not {len(children)}")
    for child in children:
        _check(child, depth=depth + 1)


class _Functions(Functions):
    """The functions of JMESPath, and those that answers of detectors need.

    `to_number` is stricter than the standard's: a string that is no number is an error and not null, because a missing
    score is null, too.
    """

    @signature({"types": []})
    def _func_to_number(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value if isinstance(value, int | float) and not isinstance(value, bool) else None
        if len(value) > _MAX_DIGITS or not _NUMBER.fullmatch(value):
            raise ExpressionError("to_number() got a string that is no number")
        return float(value)

    @signature({"types": ["object"]})
    def _func_labelled(self, groups: dict[str, Any]) -> list[dict[str, Any]]:
        """{"car": [{"x": 1}]} as [{"label": "car", "x": 1}]; what is no object stands under `value`."""
        return [
            {**item, "label": label} if isinstance(item, dict) else {"label": label, "value": item}
            for label, group in groups.items()
            for item in (group if isinstance(group, list) else [group])
        ]

    @signature({"types": ["array"], "variadic": True})
    def _func_zip(self, *arrays: list[Any]) -> list[list[Any]]:
        """[1, 2] and [3, 4] as [[1, 3], [2, 4]]."""
        if len({len(array) for array in arrays}) > 1:
            raise ExpressionError(f"zip() got arrays of {', '.join(str(len(array)) for array in arrays)} items")
        return [list(items) for items in zip(*arrays, strict=True)]

    @signature({"types": ["string"]})
    def _func_parse_json(self, text: str) -> Any:
        """The value of a JSON text, which some services put into a string of their answer."""
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            raise ExpressionError("parse_json() got a string that is no JSON") from None
