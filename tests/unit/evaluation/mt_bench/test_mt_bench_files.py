"""The official files of MT-Bench: what is read is what was written, and what the official tools would write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from judged import answer_rows, jsonl, judgment_row, question_rows
from preceptor.evaluation.mt_bench.files import (
    Judgment,
    ModelAnswer,
    parse_score,
    read_answers,
    read_judgments,
    read_questions,
    read_references,
    write_answers,
    write_judgments,
)


@pytest.mark.parametrize(
    ("judgment", "score"),
    [
        ("Good. Rating: [[7]]", 7),
        ("[[8.5]]", 8.5),
        ("first [3], then [[4]]", 4),  # double brackets come first wherever they stand
        ("[[4]] and [[9]]", 4),
        ("Rating: [6]", 6),
        ("Rating: [[10.]]", 10),
        ("Rating: [[15]]", 15),
        ("Rating: [[7/10]]", -1),
        ("Rating: [[-2]]", -1),
        ("Rating: 7", -1),
        ("", -1),
    ],
)
def test_the_grade_of_a_judgment(judgment: str, score: float) -> None:
    assert parse_score(judgment) == score


def test_answers_come_back_as_written(tmp_path: Path) -> None:
    questions = read_questions(jsonl(tmp_path / "q.jsonl", question_rows("writing", "math")))
    answers = [
        ModelAnswer(81, ("one\u2028line", 'a "{brace}"'), "m", "a1", 1.5),
        ModelAnswer(82, ("half \ud83d pair", ""), "m", "a2", 2.5),
    ]
    write_answers(tmp_path / "deep" / "m.jsonl", answers)
    assert list(read_answers(tmp_path / "deep" / "m.jsonl", questions).values()) == answers
    lines = (tmp_path / "deep" / "m.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {
        "question_id": 81,
        "answer_id": "a1",
        "model_id": "m",
        "choices": [{"index": 0, "turns": ["one\u2028line", 'a "{brace}"']}],
        "tstamp": 1.5,
    }


def test_only_a_line_feed_ends_a_row(tmp_path: Path) -> None:
    rows = question_rows("writing", "math")
    rows[0]["turns"] = ["one\u2028two\u0085three", "four\x0bfive"]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "q.jsonl").write_text(f"\ufeff{text}", encoding="utf-8", newline="")
    assert [list(each.turns) for each in read_questions(tmp_path / "q.jsonl")] == [row["turns"] for row in rows]


def test_judgments_come_back_as_written(tmp_path: Path) -> None:
    judgments = [
        Judgment(81, "m", ("org/judge", "single-v1"), "p", "Rating: [[7]]", 7.0, 1, 1.5),
        Judgment(81, "m", ("org/judge", "single-v1-multi-turn"), "p", "no", -1.0, 2, 1.5),
        Judgment(82, "m", ("org/judge", "single-v1"), "p", "Rating: [[7.5]]", 7.5, 1, 1.5),
        Judgment(82, "m", ("org/judge", "single-v1-multi-turn"), "p", "Rating: [[11]]", 11.0, 2, 1.5),
    ]
    write_judgments(tmp_path / "j.jsonl", judgments)
    assert read_judgments(tmp_path / "j.jsonl") == judgments
    rows = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert rows[0] == judgment_row(81, 1, 7, judge=["org/judge", "single-v1"], judgment="Rating: [[7]]")
    assert [type(row["score"]) for row in rows] == [int, int, float, int]


def test_answers_to_other_questions_and_further_choices_are_left_out(tmp_path: Path) -> None:
    questions = read_questions(jsonl(tmp_path / "q.jsonl", question_rows("writing")))
    rows = answer_rows(81, 90)
    rows[0]["choices"].append({"index": 1, "turns": ["x", "y"]})
    found = read_answers(jsonl(tmp_path / "a.jsonl", rows), questions)
    assert {key: each.turns for key, each in found.items()} == {81: ("m81.1", "m81.2")}
    assert read_answers(jsonl(tmp_path / "b.jsonl", answer_rows(90)), questions, partial=True) == {}


def test_references_are_needed_by_three_categories_only(tmp_path: Path) -> None:
    questions = read_questions(jsonl(tmp_path / "q.jsonl", question_rows("writing", "math", "coding", "reasoning")))
    found = read_references(jsonl(tmp_path / "r.jsonl", answer_rows(82, 83, 84, model="gpt")), questions)
    assert found == {i: (f"gpt{i}.1", f"gpt{i}.2") for i in (82, 83, 84)}


def test_the_official_files(data_folder: Path, tmp_path: Path) -> None:
    """Real files are read, and ours have their fields and types."""
    folder = data_folder / "eval" / "mt_bench"
    questions = read_questions(folder / "mt_bench" / "question.jsonl")
    assert len(questions) == 80
    assert len({each.category for each in questions}) == 8
    assert len(read_references(folder / "mt_bench/reference_answer/gpt-4.jsonl", questions)) == 30
    path = folder / "mt_bench" / "extra" / "reference_answer_gpt-4o-mini-2024-07-18.jsonl"
    answers = read_answers(path, questions)
    assert len(answers) == 80
    write_answers(tmp_path / "a.jsonl", answers.values())
    theirs = [json.loads(line) for line in path.read_text().splitlines()]
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == theirs
    vicuna = read_questions(folder / "vicuna_bench" / "question.jsonl")
    assert {len(each.turns) for each in vicuna} == {1}
    assert len(read_references(folder / "vicuna_bench/reference_answer/gpt-4.jsonl", vicuna)) == 10
