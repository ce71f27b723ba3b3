"""What every spec of a recipe shares: strictness, and value types whose errors say what is accepted.

Nothing in this package imports torch or transformers, so that the command line starts at once.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainValidator
from pydantic_core import PydanticCustomError

from preceptor.errors import accepted, did_you_mean

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
NAME_RULE = "a name of letters, digits, '_', '-' and '.', not beginning with '.' or '-', at most 100 long"
STAGE_PREFIX = "stage:"

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the top of a recipe, or of one of its parts."""


class Spec(BaseModel):
    """A frozen part of a recipe; unknown keys and values of another type (`"16"` for 16) are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def wanted(what: str) -> PydanticCustomError:
    """The error for a value that is not `what` (a noun phrase: "a whole number of at least 1")."""
    return PydanticCustomError("wanted", "write {what}", {"what": what})


def broken_rule(message: str) -> PydanticCustomError:
    """The error for a value that breaks a rule; `message` is the sentence after the path."""
    return PydanticCustomError("broken_rule", "{message}", {"message": message})


def whole(low: int, high: int | None = None) -> PlainValidator:
    """Accepts whole numbers of at least `low` and, where given, at most `high`."""
    what = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"

    def check(value: Any) -> int:
        if type(value) is not int or value < low or (high is not None and value > high):
            raise wanted(what)
        return value

    return PlainValidator(check)


def real(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> PlainValidator:
    """Accepts finite numbers from `low` to `high`; `above` and `below` leave out the ends."""
    if high == math.inf:
        what = f"a number above {low:g}" if above else f"a number of at least {low:g}"
    else:
        left_out = [f"{end:g}" for end, out in ((low, above), (high, below)) if out]
        ends = f" ({left_out[0]} excluded)" if len(left_out) == 1 else " (ends excluded)" if left_out else ""
        what = f"a number from {low:g} to {high:g}{ends}"

    def check(value: Any) -> float:
        if type(value) not in (int, float) or not -sys.float_info.max <= value <= sys.float_info.max:
            raise wanted(what)  # not isfinite(): it raises OverflowError for whole numbers of 400 digits
        if value < low or value > high or (above and value == low) or (below and value == high):
            raise wanted(what)
        return float(value)

    return PlainValidator(check)


def choice(*options: str) -> BeforeValidator:
    """Accepts one of `options`; used before a Literal so that the error offers the nearest one."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or value not in options:
            raise wanted(accepted(options) + did_you_mean(value, options))
        return value

    return BeforeValidator(check)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise wanted("text that is not empty")
    return value


def _text_or_list(value: Any) -> str | list[str]:
    if isinstance(value, list) and value and all(isinstance(item, str) and item.strip() for item in value):
        return list(value)
    if isinstance(value, str) and value.strip():
        return value
    raise wanted("text that is not empty, or a list of such texts")


def _names(value: Any) -> list[str]:
    if isinstance(value, list) and value and all(isinstance(item, str) and item for item in value):
        return list(value)
    raise wanted("a list of names that is not empty")


def _name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise wanted(NAME_RULE)
    return value


Whole0 = Annotated[int, whole(0)]
Whole1 = Annotated[int, whole(1)]
Whole2 = Annotated[int, whole(2)]
Positive = Annotated[float, real(0.0, above=True)]
NotNegative = Annotated[float, real(0.0)]
Text = Annotated[str, PlainValidator(_text)]
TextOrList = Annotated[str | list[str], PlainValidator(_text_or_list)]
Names = Annotated[list[str], PlainValidator(_names)]
Name = Annotated[str, PlainValidator(_name)]


def stage_of(text: str) -> str | None:
    """`NAME` of `stage:NAME`, or None for any other text."""
    return text[len(STAGE_PREFIX) :] if text.startswith(STAGE_PREFIX) else None


def one_or_many(value: str | Iterable[str] | Mapping[str, Any] | None) -> list[str]:
    """A string, a list of strings, the keys of a mapping, or nothing, as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
