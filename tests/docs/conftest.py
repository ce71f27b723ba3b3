"""What tests of the documentation share: a judge that answers, and a folder with what shown commands name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import toy_place

import judged
from endpoint_stub import StubEndpoint

OPENAI = "https://api.openai.com/v1"


def grade(body: dict[str, object]) -> str:
    """What a judge says: of two outputs the first is better; everything else is a 7."""
    ranked = "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]"
    return ranked if "You rank" in json.dumps(body) else "[[7]]"


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubEndpoint]:
    monkeypatch.setenv("KEY", "planted-key")
    with StubEndpoint(grade) as stub:
        yield stub


@pytest.fixture
def enter(
    judge: StubEndpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Sequence[str], str], str]:
    """Enters a shown command here, with the judge in the place of the shown one; returns what it prints."""

    def run(words: Sequence[str], place: str) -> str:
        from preceptor.cli import main

        assert words[0] == "preceptor", f"{place}: {words[0]} is neither make nor preceptor"
        given = [word.replace(OPENAI, judge.url) for word in words[1:]]
        for suite in ("mt_bench", "alpaca_eval"):
            if f"--{suite.replace('_', '-')}" in given:
                given.append(f"stages.scores.{suite}.max_new_tokens=4")  # a toy's context is short
        capsys.readouterr()
        code = main(given)
        shown, said = capsys.readouterr()
        assert code == 0, f"{place}: {' '.join(words)}\n{said[-2000:]}"
        return shown

    return run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: models, rows, official files and a `recipe.yaml` for commands that name them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    toy_place.put_models({"models": ["teacher", "student", "tuned", "shop-expert", "law-expert"]}, tmp_path)
    for name in ("rows", "chats", "general", "general_test", "shop"):
        toy_place.write_rows(tmp_path / f"{name}.jsonl", name)
    recipe = {
        "name": "shop",
        "data": {"chats": {"path": "chats.jsonl", "holdout": 4}},
        "stages": {
            "kd": {
                "kind": "distill",
                "student": "student",
                "teacher": "teacher",
                "data": "chats",
                "objective": [{"kind": "logits"}, {"kind": "attention"}],
            }
        },
    }
    toy_place.written(toy_place.settle(recipe, tmp_path), tmp_path / "recipe.yaml")
    bench = tmp_path / "llm_judge" / "data" / "mt_bench"
    judged.jsonl(bench / "question.jsonl", judged.question_rows("writing"))
    judged.jsonl(bench.parent / "judge_prompts.jsonl", judged.prompt_rows())
    judged.as_json(tmp_path / "baseline.json", judged.output_rows("b1", "b2"))
    (tmp_path / "alpaca_eval.txt").write_text(judged.RANKING)
    return tmp_path


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are written, and their figures, which take longer than the runs that are reported, are not drawn."""
    monkeypatch.setattr("preceptor.report._drawn", lambda report, log: {})
