"""Which prompt a judge is sent for each turn, and what is written of its replies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from judged import SINGLE, FakeJudge, answer_rows, jsonl, judgment_row, prompt_rows, question_rows
from preceptor.evaluation.endpoint import Completion
from preceptor.evaluation.judge import file_name
from preceptor.evaluation.mt_bench.benchmark import evaluate_mt_bench, read_mt_bench_files
from preceptor.evaluation.mt_bench.files import read_judgments
from preceptor.evaluation.mt_bench.judging import judgment_file
from preceptor.evaluation.mt_bench.prompts import read_prompts
from preceptor.recipe.suites import EndpointSpec, MtBenchSpec


def spec(folder: Path, *categories: str, judge: str | None = "org/judge", turns: int = 2, **more: Any) -> MtBenchSpec:
    jsonl(folder / "question.jsonl", question_rows(*categories, turns=turns))
    ids = range(81, 81 + len(categories))
    return MtBenchSpec(
        questions=str(folder / "question.jsonl"),
        prompts=str(jsonl(folder / "prompts.jsonl", prompt_rows())),
        references=str(jsonl(folder / "ref.jsonl", answer_rows(*ids, model="ref", turns=turns))),
        judge=None if judge is None else EndpointSpec(endpoint="http://127.0.0.1:1/v1", model=judge),
        **more,
    )


def run(folder: Path, given: MtBenchSpec, judge: FakeJudge | None, *models: str, **options: Any) -> dict[str, Any]:
    files = read_mt_bench_files(given, models)
    ids = [each.question_id for each in files.questions]
    turns = len(files.questions[0].turns)
    answered = {
        name: jsonl(folder / f"{name}.jsonl", answer_rows(*ids, model=name, turns=turns))  # type: ignore[arg-type]
        for name in models
    }
    return evaluate_mt_bench(given, files, answered, folder / "out", judge=judge, **options)


def test_every_turn_gets_the_template_of_its_category(tmp_path: Path) -> None:
    judge = FakeJudge(lambda request: "Rating: [[7]]")
    given = spec(tmp_path, "writing", "math", judge_max_tokens=99)
    run(tmp_path, given, judge, "one")
    sent = {request.messages[0]["content"]: request for request in judge.asked}
    texts = {name: request.messages[1]["content"] for name, request in sent.items()}
    assert texts == {
        "system of single-v1": "[q81.1] [one81.1]",
        "system of single-v1-multi-turn": "[q81.1] [one81.1] [q81.2] [one81.2]",
        "system of single-math-v1": "[q82.1] [ref82.1] [one82.1]",
        "system of single-math-v1-multi-turn": "[ref82.1] [ref82.2] [q82.1] [one82.1] [q82.2] [one82.2]",
    }
    assert {(each.temperature, each.max_tokens) for each in judge.asked} == {(0.0, 99)}
    assert all([each["role"] for each in request.messages] == ["system", "user"] for request in judge.asked)


@pytest.mark.parametrize("category", ["reasoning", "coding", "math"])
def test_categories_with_references(tmp_path: Path, category: str) -> None:
    judge = FakeJudge(lambda request: "[[7]]")
    run(tmp_path, spec(tmp_path, category), judge, "one")
    assert all("[ref81.1]" in request.messages[1]["content"] for request in judge.asked)


def test_questions_of_one_turn_are_graded_once(tmp_path: Path) -> None:
    judge = FakeJudge(lambda request: "[[7]]")
    found = run(tmp_path, spec(tmp_path, "generic", "math", turns=1), judge, "one")
    assert len(judge.asked) == 2
    assert found["models"]["one"]["turns"]["2"] is None
    assert found["models"]["one"]["missing"] == 0


def test_braces_in_questions_and_answers_stay_as_they_are(tmp_path: Path) -> None:
    given = spec(tmp_path, "writing")
    jsonl(tmp_path / "question.jsonl", [{**question_rows("writing")[0], "turns": ["what is {answer}?", "{answer_2}"]}])
    files = read_mt_bench_files(given, ["one"])
    rows = answer_rows(81, model="one")
    rows[0]["choices"][0]["turns"] = ["{question} {0} {{x}} }{", "f'{answer!r}'"]
    judge = FakeJudge(lambda request: "[[7]]")
    path = jsonl(tmp_path / "one.jsonl", rows)
    evaluate_mt_bench(given, files, {"one": path}, tmp_path / "out", judge=judge)
    assert {request.messages[1]["content"] for request in judge.asked} == {
        "[what is {answer}?] [{question} {0} {{x}} }{]",
        "[what is {answer}?] [{question} {0} {{x}} }{] [{answer_2}] [f'{answer!r}']",
    }


def test_the_judgment_file_is_official_and_in_order(tmp_path: Path) -> None:
    def grade(request: Completion) -> str:
        return "no idea" if "one82" in request.messages[1]["content"] else "Rating: [[7]]"

    given = spec(tmp_path, "writing", "math")
    found = run(tmp_path, given, FakeJudge(grade), "one", "two")
    path = tmp_path / "out" / "model_judgment" / "org_judge_single.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["model"], row["question_id"], row["turn"]) for row in rows] == [
        (model, question, turn) for model in ("one", "two") for question in (81, 82) for turn in (1, 2)
    ]
    assert list(rows[0]) == ["question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp"]
    assert rows[0]["judge"] == ["org/judge", "single-v1"]
    assert rows[3]["judge"] == ["org/judge", "single-math-v1-multi-turn"]
    assert rows[0]["user_prompt"] == "[q81.1] [one81.1]"
    assert [row["score"] for row in rows[:4]] == [7, 7, -1, -1]
    assert len(read_judgments(path)) == 8
    assert found["models"]["one"]["failed"] == 2
    assert found["models"]["one"]["score"] == {"score": 7.0, "low": None, "high": None}
    assert found["models"]["one"]["source"] == "ours"
    assert found["models"]["one"]["judge"] == "org/judge"
    assert found["judge"] == "org/judge"


def test_further_answers_and_judgments_are_scored_beside_ours(tmp_path: Path) -> None:
    extra = jsonl(tmp_path / "extra.jsonl", answer_rows(81, 82, model="whatever"))
    theirs = [judgment_row(q, t, 3, model=name) for name in ("gpt", "bard") for q in (81, 82) for t in (1, 2)]
    judged = jsonl(tmp_path / "judged.jsonl", theirs)
    given = spec(tmp_path, "writing", "math", answers={"vicuna": str(extra)}, judgments=[str(judged)])
    judge = FakeJudge(lambda request: "[[6]]" if "whatever" in request.messages[1]["content"] else "[[7]]")
    lines: list[str] = []
    found = run(tmp_path, given, judge, "one", log=lines.append, reference="vicuna")
    assert {name: (each["source"], each["score"]["score"]) for name, each in found["models"].items()} == {
        "one": ("ours", 7),
        "vicuna": ("answers file", 6),
        "gpt": ("judgments file", 3),
        "bard": ("judgments file", 3),
    }
    assert [each["judge"] for each in found["models"].values()] == ["org/judge", "org/judge", "gpt-4", "gpt-4"]
    # Grades of two judges are not on one scale.
    assert [(each["model"], each["than"], each["value"]) for each in found["differences"]] == [("one", "vicuna", 1)]
    assert any("one and vicuna are not distinguishable" in each for each in found["warnings"])
    assert found["warnings"][0] == (
        "the models were graded by different judges (one by org/judge, vicuna by org/judge, gpt by gpt-4, bard by "
        "gpt-4), whose scores are not on one scale and are not compared"
    )
    assert found["usage"]["requests"] == 0  # the fake counts nothing
    assert any(line.startswith("one") and " 7.00 " in line for line in lines)
    assert any(line.startswith("math") for line in lines)
    assert sum(line.startswith("warning: ") for line in lines) == len(found["warnings"])


def test_replies_that_were_cut_are_warned_about(tmp_path: Path) -> None:
    judge = FakeJudge(lambda request: "I think that")
    judge.usage.cut, judge.usage.requests = 2, 4
    found = run(tmp_path, spec(tmp_path, "writing", "math"), judge, "one")
    assert found["warnings"][0] == (
        "2 of 4 replies of the judge were ended by the limit on new tokens, perhaps before the verdict; raise "
        "`judge_max_tokens`"
    )


def test_without_a_judge_only_judgments_are_scored(tmp_path: Path) -> None:
    judged = jsonl(tmp_path / "judged.jsonl", [judgment_row(81, t, 3, model="gpt") for t in (1, 2)])
    given = spec(tmp_path, "writing", judge=None, judgments=[str(judged)])
    found = run(tmp_path, given, None, "one")
    assert list(found["models"]) == ["gpt"]
    assert (found["judge"], found["usage"]) == ("gpt-4", None)
    empty = run(tmp_path, spec(tmp_path, "writing", judge=None), None, "one")
    assert (empty["models"], empty["judge"], empty["warnings"]) == ({}, None, [])


def test_only_the_templates_that_are_needed_are_asked_for(tmp_path: Path) -> None:
    given = spec(tmp_path, "writing", turns=1)
    jsonl(tmp_path / "prompts.jsonl", [row for row in prompt_rows() if row["name"] == "single-v1"])
    assert list(read_mt_bench_files(given, []).prompts) == ["single-v1"]


def test_the_official_prompts(data_folder: Path) -> None:
    folder = data_folder / "eval" / "mt_bench"
    given = MtBenchSpec(
        questions=str(folder / "mt_bench/question.jsonl"),
        prompts=str(folder / "judge_prompts.jsonl"),
        references=str(folder / "mt_bench/reference_answer/gpt-4.jsonl"),
        judge=EndpointSpec(endpoint="http://127.0.0.1:1/v1", model="gpt-4"),
        answers={"mini": str(folder / "mt_bench/extra/reference_answer_gpt-4o-mini-2024-07-18.jsonl")},
    )
    files = read_mt_bench_files(given, [])
    assert set(files.prompts) == set(SINGLE)
    rows = [json.loads(line) for line in (folder / "judge_prompts.jsonl").read_text().splitlines()]
    values = {name: f"<{name}>" for name in ("question", "answer", "question_1", "question_2", "answer_1", "answer_2")}
    values |= {"ref_answer_1": "<r1>", "ref_answer_2": "<r2>"}
    for row in rows:
        if row["name"] in SINGLE:
            messages = files.prompts[row["name"]].messages(values)
            assert messages[0]["content"] == row["system_prompt"]
            assert messages[1]["content"] == row["prompt_template"].format(**values)


def test_the_official_benchmark_with_a_fake_judge(data_folder: Path, tmp_path: Path) -> None:
    folder = data_folder / "eval" / "mt_bench"
    given = MtBenchSpec(
        questions=str(folder / "mt_bench/question.jsonl"),
        prompts=str(folder / "judge_prompts.jsonl"),
        references=str(folder / "mt_bench/reference_answer/gpt-4.jsonl"),
        judge=EndpointSpec(endpoint="http://127.0.0.1:1/v1", model="gpt-4"),
        answers={"mini": str(folder / "mt_bench/extra/reference_answer_gpt-4o-mini-2024-07-18.jsonl")},
    )
    judge = FakeJudge(lambda request: f"Rating: [[{len(request.messages[1]['content']) % 10 + 1}]]")
    found = evaluate_mt_bench(given, read_mt_bench_files(given, []), {}, tmp_path, judge=judge)
    assert len(judge.asked) == 160
    entry = found["models"]["mini"]
    assert (entry["rows"], entry["failed"], entry["missing"], entry["source"]) == (160, 0, 0, "answers file")
    assert len(entry["categories"]) == 8
    assert {each["rows"] for each in entry["categories"].values()} == {20}
    assert found["warnings"] == []
    assert (tmp_path / "model_judgment" / "gpt-4_single.jsonl").is_file()


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("gpt-4", "gpt-4_single.jsonl"),
        ("Qwen/Qwen3-32B", "Qwen_Qwen3-32B_single.jsonl"),
        ("/srv/models/judge:latest", "srv_models_judge_latest_single.jsonl"),
        ("../..", "judge_single.jsonl"),
    ],
)
def test_a_judge_as_a_file_name(model: str, file: str) -> None:
    assert judgment_file(model) == file
    assert "/" not in file_name(model)


def test_a_template_may_write_braces_twice(tmp_path: Path) -> None:
    rows = prompt_rows()
    rows[0]["prompt_template"] = "{{x}} {question} {answer}"
    given = spec(tmp_path, "writing", turns=1)
    jsonl(tmp_path / "prompts.jsonl", rows)
    files = read_mt_bench_files(given, [])
    prompts = read_prompts(tmp_path / "prompts.jsonl", files.questions)
    assert prompts["single-v1"].messages({"question": "q", "answer": "a"})[1]["content"] == "{x} q a"
