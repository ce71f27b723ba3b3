"""MT-Bench answers: two turns, official temperatures and file, and a killed run that goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from answerers import Echo, Killed
from preceptor.evaluation.answering import request_seed
from preceptor.evaluation.local_answers import LocalAnswerer
from preceptor.evaluation.mt_bench.answers import TEMPERATURES, answer_mt_bench
from preceptor.evaluation.mt_bench.files import Question, read_answers
from preceptor.recipe.suites import MtBenchSpec

SPEC = MtBenchSpec(questions="question.jsonl", max_new_tokens=15)
CATEGORIES = ["writing", "math", "stem", "poetry", "coding", "roleplay", "reasoning", "extraction", "humanities"]
QUESTIONS = [
    Question(81 + i, category, ("abcdefgh"[: 1 + i % 6] + "h" * i, "ch"[: 1 + i % 2]), ("hint",) if i == 1 else None)
    for i, category in enumerate(CATEGORIES)
]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_time(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "tstamp"} for line in lines(path)]


def test_the_second_turn_sees_the_first_answer(tmp_path: Path) -> None:
    echo = Echo()
    answer_mt_bench(QUESTIONS, echo, SPEC, tmp_path / "echo.jsonl", 5)
    firsts, seconds = echo.asked[: len(QUESTIONS)], echo.asked[len(QUESTIONS) :]
    for asked, question in zip(reversed(firsts), QUESTIONS, strict=True):
        assert asked.messages == ({"role": "user", "content": question.turns[0]},)
    for asked, question in zip(reversed(seconds), QUESTIONS, strict=True):
        seed = request_seed(5, "mt_bench", question.question_id, 0, 1)
        assert asked.messages == (
            {"role": "user", "content": question.turns[0]},
            {"role": "assistant", "content": f"to {question.turns[0]}: {seed}"},
            {"role": "user", "content": question.turns[1]},
        )
    assert all(asked.max_new_tokens == 15 and asked.top_p == 1 for asked in echo.asked)
    assert len({asked.seed for asked in echo.asked}) == 2 * len(QUESTIONS)


def test_temperatures_are_the_official_ones_unless_given(tmp_path: Path) -> None:
    def used(spec: MtBenchSpec, name: str) -> dict[str, set[float]]:
        echo = Echo()
        answer_mt_bench(QUESTIONS, echo, spec, tmp_path / name, 5)
        found: dict[str, set[float]] = {category: set() for category in CATEGORIES}
        by_turn = {question.turns[0]: question.category for question in QUESTIONS}
        for asked in echo.asked:
            found[by_turn[asked.messages[0]["content"]]].add(asked.temperature)
        return found

    official = {
        "writing": 0.7,
        "roleplay": 0.7,
        "stem": 0.1,
        "humanities": 0.1,
        "extraction": 0,
        "math": 0,
        "coding": 0,
        "reasoning": 0,
        "poetry": 0.7,  # any other category
    }
    assert used(SPEC, "a.jsonl") == {category: {value} for category, value in official.items()}
    given = SPEC.model_copy(update={"temperatures": {"math": 0.9, "poetry": 0.0}})
    assert used(given, "b.jsonl") == {c: {v} for c, v in {**official, "math": 0.9, "poetry": 0.0}.items()}


def test_the_file_is_the_official_one(tmp_path: Path) -> None:
    path = tmp_path / "model_answer" / "echo.jsonl"
    answer_mt_bench(QUESTIONS, Echo(), SPEC, path, 5)
    written = lines(path)
    assert [line["question_id"] for line in written] == [question.question_id for question in QUESTIONS]
    for line in written:
        assert list(line) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
        assert (type(line["answer_id"]), len(line["answer_id"])) == (str, 22)
        assert line["model_id"] == "echo"
        assert isinstance(line["tstamp"], float)
        (choice,) = line["choices"]
        assert list(choice) == ["index", "turns"]
        assert choice["index"] == 0
        assert [type(turn) for turn in choice["turns"]] == [str, str]
    assert len({line["answer_id"] for line in written}) == len(QUESTIONS)
    read = read_answers(path, QUESTIONS)
    assert [list(each.turns) for each in read.values()] == [line["choices"][0]["turns"] for line in written]
    # The official readers take every *.jsonl of the folder for a model.
    assert [each.name for each in path.parent.glob("*.jsonl")] == ["echo.jsonl"]


def test_answers_do_not_depend_on_the_batch_and_change_with_the_seed(make: Any, tmp_path: Path) -> None:
    found = []
    for size, seed in ((1, 5), (4, 5), (50, 5), (4, 6)):
        path = tmp_path / f"{size}-{seed}.jsonl"
        answer_mt_bench(
            QUESTIONS, LocalAnswerer(make.model(4), make.tokenizer, name="m", batch_size=size), SPEC, path, seed
        )
        found.append(without_time(path))
    assert found[0] == found[1] == found[2]
    texts = [[line["choices"][0]["turns"] for line in lines] for lines in found]
    ids = [{line["answer_id"] for line in lines} for lines in found]
    assert ids[0].isdisjoint(ids[3])
    for question, one, other in zip(QUESTIONS, texts[0], texts[3], strict=True):
        if TEMPERATURES.get(question.category, 1) == 0:
            assert one == other
    assert texts[0] != texts[3]


@pytest.mark.parametrize("after", [0, 1, 5, 9, 13, 17])
def test_a_killed_run_goes_on_and_repeats_nothing(make: Any, tmp_path: Path, after: int) -> None:
    model = LocalAnswerer(make.model(4), make.tokenizer, name="m", batch_size=4)
    answer_mt_bench(QUESTIONS, model, SPEC, tmp_path / "whole.jsonl", 5)
    path, said = tmp_path / "m.jsonl", []
    with pytest.raises(KeyboardInterrupt):
        answer_mt_bench(QUESTIONS, Killed(model, after), SPEC, path, 5)
    assert not path.exists()
    record = tmp_path / "m.jsonl.record"
    assert record.exists() == (after > 0)
    if after:
        with record.open("a") as stream:
            stream.write('["3/2", {"text": "cut sho')  # the line that the power cut caught
    counting = Killed(model, 2 * len(QUESTIONS) - after)  # one answer more would be an interrupt
    answered = answer_mt_bench(QUESTIONS, counting, SPEC, path, 5, said.append)
    assert without_time(path) == without_time(tmp_path / "whole.jsonl")
    assert answered.answers == 18
    assert ("m: MT-Bench, turn 1 of 2, goes on after 5 of 9" in said) == (after == 5)
    assert ("m: MT-Bench, turn 1 of 2, are there, kept" in said) == (after >= 9)
    assert ("m: MT-Bench, turn 2 of 2, goes on after 4 of 9" in said) == (after == 13)


def test_a_finished_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "echo.jsonl"
    first = answer_mt_bench(QUESTIONS, Echo(), SPEC, path, 5)
    before, echo = path.read_bytes(), Echo()
    again = answer_mt_bench(QUESTIONS, echo, SPEC, path, 5)
    assert (path.read_bytes(), echo.asked, again) == (before, [], first)
    path.unlink()  # killed between the last answer and the file
    assert answer_mt_bench(QUESTIONS, echo, SPEC, path, 5) == first
    assert (path.read_bytes(), echo.asked) == (before, [])


def test_what_deserves_a_warning_is_counted_over_all_attempts(tmp_path: Path) -> None:
    questions = [
        Question(1, "writing", ("cut off",)),
        Question(2, "writing", ("short", "x" * 70)),
        Question(3, "math", ("y" * 40, "cut off")),
    ]
    echo, said, path = Echo(), [], tmp_path / "echo.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer_mt_bench(questions, Killed(echo, 4), SPEC, path, 5)
    answered = answer_mt_bench(questions, echo, SPEC, path, 5, said.append)
    assert (answered.answers, answered.tokens, answered.unfinished, answered.cut, answered.empty) == (5, 15, 2, 2, 0)
    assert answered.warnings() == [
        "echo: 2 of 5 answers were ended by the limit of new tokens or the model's context",
        "echo: 2 of 5 answers are to prompts too long for the model's context, which lost their beginning",
    ]
    assert said[-2:] == [f"note: {line}" for line in answered.warnings()]
    assert [len(line["choices"][0]["turns"]) for line in lines(path)] == [1, 2, 2]


def test_the_official_questions(data_folder: Path, tmp_path: Path) -> None:
    from preceptor.evaluation.mt_bench.files import read_questions

    questions = read_questions(data_folder / "eval" / "mt_bench" / "mt_bench" / "question.jsonl")
    echo, path = Echo(), tmp_path / "echo.jsonl"
    answered = answer_mt_bench(questions, echo, MtBenchSpec(questions="q"), path, 0)
    assert answered.answers == len(echo.asked) == 160
    assert {each.category for each in questions} == set(TEMPERATURES)
    assert len(read_answers(path, questions)) == 80


def test_progress_has_a_rate_and_the_time_left(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preceptor.evaluation.progress.REPORT_SECONDS", 0.0)
    said: list[str] = []
    model = LocalAnswerer(make.model(4), make.tokenizer, name="m", batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        answer_mt_bench(QUESTIONS, Killed(model, 3), SPEC, tmp_path / "m.jsonl", 5)
    answer_mt_bench(QUESTIONS, model, SPEC, tmp_path / "m.jsonl", 5, said.append)
    told = [line for line in said if "s left" in line]
    assert re.fullmatch(r"m: MT-Bench, turn 1 of 2: 4 of 9 rows, [\d,]+ tokens/s, [\d,]+ s left", told[1])
    assert [line.split(": ")[1] for line in told].count("MT-Bench, turn 2 of 2") == 9  # 0 to 8 of 9
