"""How models and stages look in every figure of a report: one colour, marker and dash each, and names that fit.

Okabe and Ito's palette stays apart for colour-blind readers. Its black and yellow are left out: black is the colour
of the text, which follows the page's theme, and yellow is unreadable on white.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Colours the page's theme replaces. In PNG files, which have no theme, they are used as they are.
INK = "#1b1d1f"
MUTED = "#5c6167"
RULE = "#d8dade"
PAPER = "#ffffff"
PALETTE = {
    "blue": "#0072b2",
    "vermillion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "orange": "#e69f00",
    "sky": "#56b4e9",
}
THEMED = {
    INK: "currentColor",
    MUTED: f"var(--muted, {MUTED})",
    RULE: f"var(--figure-rule, {RULE})",
    PAPER: f"var(--paper, {PAPER})",
    **{colour: f"var(--figure-{name}, {colour})" for name, colour in PALETTE.items()},
}

MARKERS = ("o", "s", "^", "D", "v", "X", "p", "h")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))


@dataclass(frozen=True)
class Look:
    """Colour (#rrggbb), marker and line style of one model or stage."""

    colour: str
    marker: str = "o"
    dash: Any = "solid"


class Looks:
    """Looks by title, the same in all figures; titles that were not announced get the next free one."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self._found: dict[str, Look] = {}
        self._next = 0
        for key, model in report["models"].items():
            title = title_of(key, model)
            if model["kind"] == "reference":
                self._found[title] = Look(INK, "P", "solid")
            elif model["kind"] == "expert":
                self._found[title] = Look(MUTED, "*", (0, (5, 2)))
            elif model["kind"] == "published":
                self._found[title] = Look(MUTED, "d", (0, (1.2, 1.6)))
            else:
                self.of(title)

    def of(self, title: str) -> Look:
        if title not in self._found:
            colours = list(PALETTE.values())
            number, self._next = self._next, self._next + 1
            turn = number // len(colours)
            marker = MARKERS[(number + turn) % len(MARKERS)]
            self._found[title] = Look(colours[number % len(colours)], marker, DASHES[turn % len(DASHES)])
        return self._found[title]


def title_of(key: str, model: Mapping[str, Any]) -> str:
    """What a model is called in figures and tables."""
    return str(model.get("title") or key)


def titles_of(models: Iterable[str], report: Mapping[str, Any]) -> dict[str, str]:
    """{key: title}, where titles that two models share are told apart by their keys."""
    titles = {key: title_of(key, report["models"][key]) for key in models}
    shared = [title for title in titles.values() if list(titles.values()).count(title) > 1]
    return {key: f"{title} ({key})" if title in shared and title != key else title for key, title in titles.items()}


BIDI_CONTROLS = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd")
"""Characters that turn the text after them around, and so make a name read as another."""


def legible(text: str) -> str:
    """`text` on one line, without what neither XML nor a font can show."""
    unseen = ("Cc", "Cs", "Cn", "Zl", "Zp")
    shown = "".join(" " if unicodedata.category(letter) in unseen else letter for letter in text)
    return " ".join(shown.translate(BIDI_CONTROLS).split())


def readable(text: str, limit: int = 34) -> str:
    """`legible` text, shortened in the middle to `limit` characters."""
    shown = legible(text) or "unnamed"
    if len(shown) > limit:
        tail = limit // 3
        shown = f"{shown[: limit - tail - 1]}…{shown[-tail:]}"
    return shown


def readable_all(texts: Sequence[str], limit: int = 34) -> list[str]:
    """`readable` texts that stay apart: where shortening would make two alike, what they begin or end with alike goes.

    Names of checkpoints are often long paths that differ in the middle.
    """
    whole = [legible(text) or "unnamed" for text in texts]
    short = [readable(text, limit) for text in whole]
    alike = [text for text, shown in zip(whole, short, strict=True) if short.count(shown) > 1 and len(text) > limit]
    start, end = _common(alike), _common([text[::-1] for text in alike])
    longest = max((len(text) - start - end for text in alike), default=0)
    # As much of what is alike stays as there is room for.
    room = max(3, (limit - longest - 2) // 2)
    for place, text in enumerate(whole):
        if text in alike and len(set(alike)) > 1:
            left, right = max(0, start - room), max(0, end - room)
            middle = text[left : max(start, len(text) - right)]
            short[place] = readable(f"{'…' if left else ''}{middle}{'…' if right else ''}", limit)
    for place, shown in enumerate(short):
        if short.count(shown) > 1 and whole.count(whole[place]) < short.count(shown):
            short[place] = f"{shown[: limit - 5]}… {place + 1}"
    return short


def _common(texts: Sequence[str]) -> int:
    """How many characters all texts begin with alike."""
    return next((n for n, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), 0)
