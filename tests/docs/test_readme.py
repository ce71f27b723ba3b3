"""What README, CONTRIBUTING and the pages of reference show is true: recipes run, Python runs, commands work.

Pages to be followed step by step are in test_howto.py; those with tests of their own (judges, tasks) are named here.
"""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import toy_place
from snippets import PAGES, ROOT, Snippet, snippets

LANGUAGES = {"sh", "yaml", "python", "json", "text"}
ELSEWHERE = {"docs/judges.md": "test_judges_page.py", "docs/tasks.md": "test_tasks_page.py"}
"""Pages whose recipes another test runs: they need files of other people's formats."""
SHOWN = snippets(walked=False)
IDS = {"ids": lambda snippet: snippet.place}


def page_of(snippet: Snippet) -> str:
    return snippet.place.partition(":")[0]


RECIPES = [snippet for snippet in SHOWN if snippet.language == "yaml" and page_of(snippet) not in ELSEWHERE]
COMMANDS = [(s, words) for s in SHOWN if s.language == "sh" for words in s.commands() if words[0] != "make"]


def test_every_block_is_of_a_language_that_is_checked() -> None:
    unchecked = [f"{s.place}: {s.language or 'no language'}" for s in snippets() if s.language not in LANGUAGES]
    assert not unchecked
    assert not [s.place for s in SHOWN if s.language in ("json", "text")]  # only followed pages check these


def test_the_readme_begins_with_one_sentence_the_commands_and_a_table() -> None:
    parts = [part for part in (ROOT / "README.md").read_text(encoding="utf-8").split("\n\n") if part.strip()]
    assert parts[0].startswith("# preceptor")
    assert parts[1].count(". ") == 0
    assert "make demo" in parts[2]
    assert "preceptor run recipe.yaml" in parts[2]
    assert parts[3].startswith("|")


@pytest.mark.parametrize("page", sorted(ELSEWHERE))
def test_the_recipes_that_run_elsewhere_load(page: str, tmp_path: Path) -> None:
    from preceptor.recipe import load_recipe

    assert (ROOT / "tests" / "docs" / ELSEWHERE[page]).exists()
    for snippet in snippets("yaml"):
        if page_of(snippet) == page:
            (tmp_path / "recipe.yaml").write_text(snippet.text, encoding="utf-8")
            assert load_recipe(tmp_path / "recipe.yaml").stages


@pytest.mark.slow
@pytest.mark.parametrize("snippet", RECIPES, **IDS)
def test_recipes_run(snippet: Snippet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import preceptor

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("BIG_KEY", "planted-key")
    with toy_place.served(snippet.text) as text:
        recipe = preceptor.load_recipe(toy_place.shown(text, tmp_path, tmp_path / "recipe.yaml"))
        result = preceptor.run(recipe, log=lambda line: None)
    assert {stage["status"] for stage in result["stages"].values()} == {"done"}


@pytest.mark.slow
@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(("snippet", "words"), COMMANDS, ids=[f"{s.place} {' '.join(words)}" for s, words in COMMANDS])
def test_shown_commands_run(snippet: Snippet, words: list[str], place: Path, enter: Callable[..., str]) -> None:
    """Each by itself, for many are alternatives; a recipe that the block writes first is written."""
    if words[1] == "demo":  # takes minutes and has tests of its own; here only that it and its options exist
        offered = enter([*words[:2], "--help"], snippet.place)
        assert all(word in offered for word in words[2:] if word.startswith("--"))
        return
    if "--tasks" in words:  # the harness's own tasks are on the Hub; test_tasks_page.py runs one from a file
        assert "--tasks" in enter([*words[:2], "--help"], snippet.place)
        return
    for earlier in snippet.commands():
        if earlier == words:
            break
        if earlier[1] == "init":
            enter(earlier, snippet.place)
    if words[1] in ("report", "store"):
        enter(["preceptor", "run", "recipe.yaml"], snippet.place)
        if "scores" in words:
            enter(["preceptor", "evaluate", "./student", "--general", "general.jsonl"], snippet.place)
    enter(words, snippet.place)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", [s for s in SHOWN if s.language == "python"], **IDS)
def test_python_runs(snippet: Snippet, place: Path) -> None:
    script = place / "snippet.py"
    script.write_text(snippet.text, encoding="utf-8")
    runpy.run_path(str(script))


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_make_targets_that_are_shown_or_named_exist() -> None:
    shown = [words for snippet in snippets("sh") for words in snippet.commands() if words[0] == "make"]
    named = {word for words in shown for word in words[1:] if "=" not in word}
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert named
    assert named | set(re.findall(r"`make ([a-z]+)", text)) <= make_targets()
