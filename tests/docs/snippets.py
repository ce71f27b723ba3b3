"""Fenced code blocks of Markdown pages, as the documentation tests see them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]

FENCE = re.compile(r"^```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """One block; `place` is `page:line` of its first line."""

    place: str
    language: str
    text: str


def snippets(*languages: str) -> list[Snippet]:
    """The blocks in any of the languages, over all pages, in order."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            found.append(Snippet(f"{page.relative_to(ROOT)}:{line}", match["language"], match["text"]))
    return [snippet for snippet in found if snippet.language in languages] if languages else found
