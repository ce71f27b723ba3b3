"""Fenced code blocks of Markdown pages, as the documentation tests see them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")), *sorted(ROOT.glob("docs/**/*.md"))]
WALKED = [ROOT / "docs" / "index.md", ROOT / "docs" / "python.md", *sorted(ROOT.glob("docs/howto/*.md"))]
"""Pages whose blocks are run one after the other, in one folder, as a reader would."""

FENCE = re.compile(r"^```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """One block.

    place: `page:line` of its first line.
    before: the text between the last block, or the last heading, and this one.
    """

    place: str
    language: str
    text: str
    before: str = ""

    def file(self, *suffixes: str, default: str = "") -> str:
        """The file that the block is: the last one with such an ending that the text before it names in backticks."""
        found = re.findall(rf"`([\w./-]+(?:{'|'.join(map(re.escape, suffixes))}))`", self.before)
        return found[-1] if found else default

    def commands(self) -> list[list[str]]:
        """The words of each command of an `sh` block; a line that ends in a backslash goes on in the next."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def snippets_of(page: Path) -> list[Snippet]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found, last = [], 0
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        before = re.split(r"^#+ ", text[last : match.start()], flags=re.MULTILINE)[-1]
        found.append(Snippet(f"{page.relative_to(ROOT)}:{line}", match["language"], match["text"], before))
        last = match.end()
    return found


def snippets(*languages: str, walked: bool = True) -> list[Snippet]:
    """The blocks in any of the languages, over all pages, in order; without `walked` those of the other pages."""
    found = [snippet for page in PAGES if walked or page not in WALKED for snippet in snippets_of(page)]
    return [snippet for snippet in found if snippet.language in languages] if languages else found
