"""The first page, the how-tos and the Python page, done as they say: files, commands, output."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import toy_place
from snippets import WALKED, Snippet, snippets_of


class Reader:
    """Someone who does what a page says."""

    def __init__(self, place: Path, enter: Callable[..., str]) -> None:
        self.place, self.enter = place, enter
        self.waiting: set[str] = set()
        self.printed = ""

    def do(self, snippet: Snippet) -> None:
        getattr(self, f"_{snippet.language}")(snippet)

    def finish(self) -> None:
        """Runs the recipes that no command of the page has run."""
        import preceptor

        for name in sorted(self.waiting):
            preceptor.run(preceptor.load_recipe(self.place / name), log=lambda line: None)
        self.waiting.clear()

    def _yaml(self, snippet: Snippet) -> None:
        name = snippet.file(".yaml", default="recipe.yaml")
        if name in self.waiting:
            self.finish()
        toy_place.shown(snippet.text, self.place, self.place / name)
        self.waiting.add(name)

    def _json(self, snippet: Snippet) -> None:
        name = snippet.file(".jsonl", ".json")
        assert name, f"{snippet.place}: which file is this?"
        for line in snippet.text.splitlines():
            json.loads(line)
        (self.place / name).write_text(snippet.text, encoding="utf-8")

    def _sh(self, snippet: Snippet) -> None:
        for words in snippet.commands():
            if words[0] == "make" or words[1] == "demo":
                continue  # they have tests of their own
            self.printed = self.enter(words, snippet.place)
            if words[1] == "run":
                self.waiting.discard(words[2])
            if words[1] == "init":
                written = self.place / "recipe.yaml"
                toy_place.shown(written.read_text(encoding="utf-8"), self.place, written)

    def _text(self, snippet: Snippet) -> None:
        printed = [line.rstrip() for line in self.printed.splitlines()]
        missing = [line for line in snippet.text.splitlines() if line.rstrip() not in printed]
        assert not missing, f"{snippet.place}: not printed: {missing}\nprinted:\n{self.printed}"

    def _python(self, snippet: Snippet) -> None:
        script = self.place / "snippet.py"
        script.write_text(snippet.text, encoding="utf-8")
        runpy.run_path(str(script))


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("page", WALKED, ids=lambda page: page.stem)
def test_the_page_can_be_followed(page: Path, place: Path, enter: Callable[..., str]) -> None:
    if page.stem == "index":
        (place / "recipe.yaml").unlink()  # there it is `preceptor init` that writes it
    reader = Reader(place, enter)
    for snippet in snippets_of(page):
        reader.do(snippet)
    reader.finish()
