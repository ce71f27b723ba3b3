"""A table as the page sets it: columns that sort, cells with an interval under the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preceptor.report.views.numbers import interval_of, number, short_spread, significant


@dataclass(frozen=True)
class Column:
    """`title` is the whole name where `name` is short."""

    name: str
    title: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """`order` is what the column sorts by; cells without one stay last whichever way it is sorted."""

    text: str = ""
    note: str = ""
    order: float | str | None = None
    tags: tuple[str, ...] = ()
    code: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as there are columns; the first cell is the row's header."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    quiet: Sequence[bool] = field(default_factory=tuple)
    """Which rows are set in the muted colour: those that are not ours."""


EMPTY = Cell()


def figure(given: Mapping[str, Any] | None, digits: int | None = 3, scale: float = 1.0) -> Cell:
    """A value with its interval; without `digits`, three significant ones."""
    found = interval_of(given)
    if found is None:
        return EMPTY
    value, low, high = found
    digits = significant(value) if digits is None else digits
    note = short_spread(low * scale, high * scale, digits) if low is not None and high is not None else ""
    return Cell(number(value * scale, digits), note, value)


def plain(value: float | None, digits: int = 0) -> Cell:
    """A value that has no interval."""
    return EMPTY if value is None else Cell(number(value, digits), order=float(value))


def words(text: str, note: str = "") -> Cell:
    """Text, sorted as it reads."""
    return Cell(text, note, text.casefold())


def without_empty(
    name: str, caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], quiet: Sequence[bool] = ()
) -> Table | None:
    """The table without columns in which no row has anything; None without rows."""
    if not rows:
        return None
    kept = [place for place in range(len(columns)) if place == 0 or any(row[place] != EMPTY for row in rows)]
    return Table(
        name, caption, [columns[place] for place in kept], [[row[place] for place in kept] for row in rows], quiet
    )
