"""The shapes of public data, and what identifies a row."""

from __future__ import annotations

import json

import pytest

from preceptor.data.rows import Row, read_rows
from preceptor.recipe import DatasetSpec

SHAPES = {
    "messages": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    "conversations": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "prompt/completion": {"prompt": "q", "completion": "a"},
    "instruction/input/output": {"instruction": "q", "input": "", "output": "a"},
}


def read(write, *records, **spec):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    said: list[str] = []
    answers = spec.pop("answers", True)
    rows = read_rows("x", DatasetSpec(path=write("d.jsonl", lines), **spec), announce=said.append, answers=answers)
    return rows, said


def turns(row: Row) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in row.messages or ()]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(write, shape):
    (row,), said = read(write, {**SHAPES[shape], "task": 3})
    assert said == [f"x: 1 row, JSONL, `{shape}`"]
    assert turns(row) == [("user", "q"), ("assistant", "a")]
    assert row.extra == {"task": 3}
    assert (row.prompt, row.answer) == ("q", "a")


def test_several_turns_and_roles(write):
    sharegpt = {
        "system": "brief",
        "conversations": [
            {"from": "human", "value": "1"},
            {"from": "gpt", "value": "2"},
            {"from": "user", "value": "3"},
            {"from": "assistant", "value": "4"},
        ],
    }
    (row,), _ = read(write, sharegpt)
    assert turns(row) == [("system", "brief"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")]
    assert row.prompt == "brief 1"


def test_alpaca_input_follows_the_instruction(write):
    rows, _ = read(write, {"instruction": "add", "input": "1 2", "output": "3"}, {"instruction": "go", "output": "ok"})
    assert turns(rows[0]) == [("user", "add\n\n1 2"), ("assistant", "3")]
    assert turns(rows[1]) == [("user", "go"), ("assistant", "ok")]


def test_prompt_and_completion_may_be_messages(write):
    record = {
        "prompt": [{"role": "system", "content": "brief"}, {"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "a"}],
    }
    as_text = {key: json.dumps(value) for key, value in record.items()}
    bracket = {"prompt": "[1, 2] is a list?", "completion": "[yes"}
    rows, _ = read(write, record, as_text, bracket)
    assert turns(rows[0]) == turns(rows[1]) == [("system", "brief"), ("user", "q"), ("assistant", "a")]
    assert turns(rows[2]) == [("user", "[1, 2] is a list?"), ("assistant", "[yes")]


def test_the_first_shape_of_the_list_wins(write):
    (row,), said = read(write, {"text": "all of it", "prompt": "p", **SHAPES["messages"]})
    assert said == ["x: 1 row, JSONL, `messages`"]
    assert row.extra == {"text": "all of it", "prompt": "p"}


def test_columns_are_renamed(write):
    (row,), _ = read(write, {"question": "q", "answer": "a"}, columns={"prompt": "question", "completion": "answer"})
    assert turns(row) == [("user", "q"), ("assistant", "a")]
    swapped = {"prompt": "a", "completion": "q"}
    (row,), _ = read(write, swapped, columns={"prompt": "completion", "completion": "prompt"})
    assert turns(row) == [("user", "q"), ("assistant", "a")]


def test_prompts_alone_are_for_generation(write):
    (row,), said = read(write, {"prompt": "q", "id": 1}, answers=False)
    assert turns(row) == [("user", "q")]
    assert said == ["x: 1 row, JSONL, `prompt`"]
    (row,), said = read(write, {"instruction": "q", "input": "i"}, answers=False)
    assert turns(row) == [("user", "q\n\ni")]


def test_what_identifies_a_row(chat):
    assert chat("s:a  b", "u: c\n", "a:d", "u:e").prompt == "a b c"
    assert chat("s:a  b", "u: c\n", "a:other").prompt_key == chat("u:a b c", "a:d").prompt_key
    assert chat("a:opens", "u:e").prompt == "opens e"
    assert Row("x", None, " all\n of it ", {}, "").prompt == "all of it"
    assert chat("u:c", "a:d").prompt_key != chat("u:C", "a:d").prompt_key
