"""Lines of YAML with their comments beside or above them."""

from __future__ import annotations

import json
import re

from preceptor.recipe.yaml_text import parse_yaml

_COLUMN = 36
"""Where comments begin."""
_WIDTH = 88
_PLAIN = re.compile(r"[\w./~$+:-]+")


def scalar(text: str) -> str:
    """Text as YAML reads it back: plain where it can be, else in quotes."""
    if _PLAIN.fullmatch(text) and parse_yaml(text, "")[0] == text:
        return text
    return json.dumps(text, ensure_ascii=False)


def commented(text: str, why: str = "") -> list[str]:
    """A line of YAML with its comment, which stands above it where both are too long."""
    if not why:
        return [text]
    line = f"{text:<{_COLUMN - 2}}  # {why}"
    if len(line) <= _WIDTH:
        return [line]
    indent = " " * (len(text) - len(text.lstrip(" -")))
    return [*comment(why, indent), text]


def comment(text: str, indent: str) -> list[str]:
    """A comment of as many lines as it takes."""
    lines, line = [], indent + "#"
    for word in text.split():
        if len(line) + 1 + len(word) > _WIDTH:
            lines.append(line)
            line = indent + "#"
        line += " " + word
    return [*lines, line]
