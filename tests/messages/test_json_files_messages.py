"""Texts that JSON can spell and UTF-8 cannot write are refused when a file is read, not after the judge is paid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from answerers import Echo
from preceptor.errors import InputError
from preceptor.evaluation.alpaca_eval.files import instructions_of, read_outputs
from preceptor.evaluation.alpaca_eval.outputs import answer_alpaca_eval
from preceptor.evaluation.mt_bench.files import Question, read_answers, read_questions
from preceptor.recipe.suites import AlpacaEvalSpec

QUESTION = {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"turns": ["Write.", "a \ud83d b"]}, r"`turns` holds '\ud83d'"),
        ({"question_id": "\ud83d"}, r"`question_id` holds '\ud83d'"),
        ({"category": "\udc4d"}, r"`category` holds '\udc4d'"),
    ],
)
def test_questions(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "question.jsonl"
    path.write_text(json.dumps(QUESTION) + "\n" + json.dumps(QUESTION | {"question_id": 82} | change) + "\n")
    with pytest.raises(InputError) as caught:
        read_questions(path)
    assert str(caught.value) == (
        f"{path}:2: {said}, one half of a surrogate pair, in place of a character; write the whole character; give the "
        'official question.jsonl, rows of {"question_id", "category", "turns"}'
    )
    str(caught.value).encode()


@pytest.mark.parametrize("field", ["instruction", "generator"])
def test_outputs(tmp_path: Path, field: str) -> None:
    row = {"instruction": "Write.", "output": "No.", "generator": "m", "dataset": "d", field: "\ud800"}
    (tmp_path / "m.json").write_text(json.dumps([row]))
    with pytest.raises(InputError, match=rf"m\.json: row 1: `{field}` holds '\\ud800', one half of a surrogate pair"):
        read_outputs(tmp_path / "m.json")


def test_answers_may_have_been_cut_in_a_character(tmp_path: Path) -> None:
    row = {"question_id": 81, "answer_id": "a", "model_id": "m", "choices": [{"index": 0, "turns": ["\udfff", "b"]}]}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    question = Question(81, "writing", ("Write.", "Rewrite."))
    assert read_answers(tmp_path / "m.jsonl", [question])[81].turns == ("\udfff", "b")
    (tmp_path / "m.json").write_text(json.dumps([{"instruction": "Write.", "output": "\ud83d", "generator": "m"}]))
    assert [each.output for each in read_outputs(tmp_path / "m.json")] == ["\ud83d"]


def test_a_whole_pair_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "question.jsonl").write_text(json.dumps({**QUESTION, "turns": ["\U0001f44d é"]}))
    assert read_questions(tmp_path / "question.jsonl")[0].turns == ("\U0001f44d é",)


def test_a_dataset_of_such_a_name_is_answered(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(
        json.dumps([{"instruction": "é", "output": "a", "generator": "m", "dataset": "\ud83d"}])
    )
    instructions = instructions_of(read_outputs(tmp_path / "m.json"))
    spec = AlpacaEvalSpec(baseline="m.json")
    assert answer_alpaca_eval(instructions, Echo(), spec, tmp_path / "out.json", 5).answers == 1
    assert instructions_of(read_outputs(tmp_path / "out.json")) == instructions
