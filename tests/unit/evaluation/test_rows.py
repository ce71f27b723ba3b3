"""Which rows are evaluated, and what they say of themselves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from preceptor.data.chat import Dropped
from preceptor.data.rows import Row, read_rows
from preceptor.data.split import SplitRows
from preceptor.evaluation.encode import EncodedQuestion, encode_questions
from preceptor.evaluation.rows import evaluation_set, question
from preceptor.recipe import DatasetSpec


def test_test_rows_come_before_the_holdout(make: Any) -> None:
    train, holdout, test = ([make.row(word, "a")] for word in ("train", "holdout", "test"))
    spec = DatasetSpec(path="d.jsonl", role="domain", max_length=9)
    found = evaluation_set(SplitRows("d", train, holdout, test), spec)
    assert (found.part, found.role, found.max_length) == ("test", "domain", 9)
    assert [each.prompt for each in found.questions] == ["test"]
    found = evaluation_set(SplitRows("d", train, holdout, []), DatasetSpec(path="d.jsonl"))
    assert (found.part, found.role) == ("holdout", "general")
    assert [each.prompt for each in found.questions] == ["holdout"]


def test_fewer_rows_are_a_draw_from_all_in_their_order(make: Any) -> None:
    rows = [make.row(f"{i}", "a") for i in range(50)]
    spec = DatasetSpec(path="d.jsonl")

    def prompts(seed: int, count: int, given: list[Row]) -> list[str]:
        found = evaluation_set(SplitRows("d", [], [], given), spec, rows=count, seed=seed)
        return [each.prompt for each in found.questions]

    ten = prompts(1, 10, rows)
    assert len(ten) == 10
    assert ten == sorted(ten, key=int)
    assert int(ten[-1]) > 25  # not the first ten
    assert set(ten) <= set(prompts(1, 20, rows))
    assert set(prompts(1, 10, rows[::-1])) == set(ten)
    assert prompts(2, 10, rows) != ten
    assert prompts(1, 99, rows) == [f"{i}" for i in range(50)]


def test_a_dataset_may_name_the_metric_of_rows_that_name_none(make: Any) -> None:
    rows = [make.row("q1", "yes", task="a"), make.row("q2", "no", task="b", metric="rougeL")]
    found = evaluation_set(SplitRows("d", [], [], rows), DatasetSpec(path="d.jsonl", metric="exact"))
    assert [each.metric for each in found.questions] == ["exact", "rougeL"]


def test_a_question_is_what_comes_before_the_last_answer(make: Any) -> None:
    found = question(make.row("q", "a", metric="exact", task="sums"))
    assert (found.prompt, found.expected, found.task, found.metric) == ("q", "a", "sums", "exact")
    assert question(make.row("q", "a")).task == "shop"
    assert question(make.row("q", "a", metric=None, choices=None)).metric is None
    text = question(Row("d", None, "some text", {}, "o"))
    assert (text.prompt, text.expected, text.metric) == ("", None, None)
    assert text.id != question(Row("d", None, "other text", {}, "o")).id
    # Rows that ask the same share an id, whatever the answer.
    assert found.id == question(make.row("q", "b")).id != question(make.row("r", "a")).id


def test_choices_may_come_as_json(make: Any) -> None:
    """As they do in a CSV cell."""
    found = question(make.row("q", "no", metric="accuracy", choices='["yes", "no"]'))
    assert found.choices == ("yes", "no")


def encoded(make: Any, *rows: Row, max_length: int) -> list[EncodedQuestion | Dropped]:
    return encode_questions(make.set(list(rows)), make.tokenizer, max_length=max_length)


def test_what_cannot_be_measured_is_dropped_with_its_reason(make: Any) -> None:
    length = len(make.tokenizer("<s>User: abc\n\nAssistant:", add_special_tokens=False)["input_ids"])
    choose = make.row("abc", "a", metric="accuracy", choices=["a", "abcdefgh"])
    write = make.row("abc", "abcdefgh", metric="exact")
    found = encoded(make, choose, write, max_length=length + 4)
    assert found[0] == Dropped(f"a choice does not fit within {length + 4} tokens")
    assert isinstance(found[1], EncodedQuestion)  # the prompt fits: an answer may still be written
    assert found[1].prompt is not None
    assert len(found[1].prompt) == length
    assert "truncated" in found[1].answered.notes
    found = encoded(make, write, make.row("abc", ""), max_length=length)
    assert [each.reason for each in found if isinstance(each, Dropped)] == [
        f"no target within {length} tokens",
        "the answer is empty",
    ]


def test_only_what_a_metric_needs_is_encoded(make: Any) -> None:
    choose = make.row("abc", "a", metric="accuracy", choices=["a", "b"])
    found = encoded(make, choose, make.row("abc", "a"), make.row("abc", "a", metric="rougeL"), max_length=99)
    assert all(isinstance(each, EncodedQuestion) for each in found)
    shapes = [(len(e.choices), e.prompt is not None) for e in found if isinstance(e, EncodedQuestion)]
    assert shapes == [(2, False), (0, False), (0, True)]


def test_the_real_shop_rows_say_how_they_are_scored(data_folder: Path) -> None:
    spec = DatasetSpec(path=str(data_folder / "ecommerce" / "ecom_eval.jsonl"), role="domain")
    rows = read_rows("shop", spec, announce=print)
    found = evaluation_set(SplitRows("shop", [], [], rows), spec)
    assert (found.role, found.part) == ("domain", "test")
    assert Counter(each.metric for each in found.questions) == {"accuracy": 4318, "rougeL": 2871}
    assert Counter(len(each.choices) for each in found.questions if each.choices) == {2: 2700, 3: 970, 27: 648}
    assert len({each.task for each in found.questions}) == 8
