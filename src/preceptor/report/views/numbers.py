"""Numbers as the page writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from preceptor.system.live import clock


def interval_of(figure: Mapping[str, Any] | None) -> tuple[float, float | None, float | None] | None:
    """(value, low, high) of a figure with `score` or `value`; None where it has no finite value."""
    if figure is None:
        return None
    value = figure.get("score", figure.get("value"))
    if value is None or not math.isfinite(value):
        return None
    low, high = figure.get("low"), figure.get("high")
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return (value, low, high) if known else (value, None, None)


def number(value: float | None, digits: int = 3) -> str:
    """With a real minus sign; empty for None."""
    if value is None or not math.isfinite(value):
        return ""
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) != 0 else text.replace("-", "")


def signed(value: float, digits: int = 3) -> str:
    """With its sign, + too."""
    text = number(value, digits)
    return text if text.startswith("−") else f"+{text}"


def spread(low: float | None, high: float | None, digits: int = 3) -> str:
    """`low to high`, or nothing."""
    return "" if low is None or high is None else f"{number(low, digits)} to {number(high, digits)}"


def significant(value: float, digits: int = 3) -> int:
    """How many decimals show `digits` significant digits, at most 4 and at least none."""
    return 4 if value == 0 else max(0, min(4, digits - 1 - math.floor(math.log10(abs(value)))))


def short_spread(low: float | None, high: float | None, digits: int = 3) -> str:
    """For tables: `low–high`, and `low to high` where a dash would stand beside a minus."""
    text = spread(low, high, digits)
    return text if "−" in text else text.replace(" to ", "–")


def with_spread(figure: Mapping[str, Any] | None, digits: int = 3, scale: float = 1.0, unit: str = "") -> str:
    """`0.869 (0.848 to 0.890)`."""
    found = interval_of(figure)
    if found is None:
        return ""
    value, low, high = found
    text = f"{number(value * scale, digits)}{unit}"
    return text if low is None or high is None else f"{text} ({spread(low * scale, high * scale, digits)})"


def money(amount: float) -> str:
    """Two decimals, or of a small amount as many as show two digits of it."""
    return number(amount, 2) if abs(amount) >= 1 or amount == 0 else f"{amount:.2g}"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that fit."""
    if seconds is None:
        return ""
    return f"{seconds:.2g} s" if seconds < 10 else clock(seconds)
