"""What a user is told about data that cannot be used: one sentence, with the place and the way out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from preceptor.data.rows import read_rows
from preceptor.data.split import split_rows
from preceptor.errors import InputError
from preceptor.recipe import DatasetSpec

GOOD = '{"prompt": "q", "completion": "a"}\n'


def chat(*messages: object) -> str:
    return json.dumps({"messages": messages}) + "\n"


# name of the file, its content, what the spec adds, what is said (PATH stands for the file)
CASES: dict[str, tuple[str, str | bytes | None, dict[str, object], str]] = {
    "missing file": (
        "d.jsonl",
        None,
        {},
        "data x: PATH does not exist; give a file, a folder or a Hub id (owner/name), relative to the recipe or the "
        "working directory",
    ),
    "unknown suffix": (
        "d.xlsx",
        GOOD,
        {},
        "data x: the format of PATH cannot be told from its name; accepted are .jsonl, .ndjson, .json, .csv, .parquet "
        "or .txt, or set `format:` to jsonl, json, csv, parquet, text or hub",
    ),
    "empty file": ("d.jsonl", "", {}, "data x: PATH has no rows; an empty file cannot be trained on"),
    "blank lines only": ("d.jsonl", "\n \n", {}, "data x: PATH has no rows; an empty file cannot be trained on"),
    "empty text": ("d.txt", "\n\n", {}, "data x: PATH has no rows; an empty file cannot be trained on"),
    "header only": ("d.csv", "text\n", {}, "data x: PATH has no rows; an empty file cannot be trained on"),
    "empty list": ("d.json", "[]", {}, "data x: PATH has no rows; an empty file cannot be trained on"),
    "malformed line": (
        "d.jsonl",
        GOOD + '{"prompt": "q", \n' + GOOD,
        {},
        "PATH:2: not valid JSON: ",
    ),
    "malformed JSON": ("d.json", "[\n{},\n{]", {}, "PATH:3: not valid JSON: "),
    "not an object": (
        "d.jsonl",
        GOOD + '["q", "a"]\n',
        {},
        "PATH:2: a row must be an object such as {\"messages\": [...]}, and this is ['q', 'a']",
    ),
    "not a list": (
        "d.json",
        '{"rows":\n []}',
        {},
        "PATH: a JSON file must hold a list of rows or {\"data\": [rows]}, not {'rows': []}",
    ),
    "JSON row": ("d.json", '[{"text": "a"}, 3]', {}, "PATH: row 2: a row must be an object such as"),
    "messages empty": (
        "d.jsonl",
        chat({"role": "user", "content": "q"}) + '{"messages": []}',
        {},
        "PATH:2: messages is empty; a row needs at least one message",
    ),
    "messages no list": ("d.jsonl", '{"messages": 3}', {}, "PATH:1: messages must be a list of messages, not 3"),
    "message no object": (
        "d.jsonl",
        chat("hello"),
        {},
        'PATH:1: messages[0] must be {"role": ..., "content": ...}, not \'hello\'',
    ),
    "unknown role": (
        "d.jsonl",
        chat({"role": "user", "content": "q"}, {"role": "asistant", "content": "a"}),
        {},
        "PATH:1: messages[1] has the role 'asistant' (did you mean 'assistant'?); accepted are system, user or "
        "assistant",
    ),
    "unknown ShareGPT role": (
        "d.jsonl",
        json.dumps({"conversations": [{"from": "tool", "value": "3"}]}),
        {},
        "PATH:1: conversations[0] has the role 'tool'; accepted are human, gpt, chatgpt, model, system, user or "
        "assistant",
    ),
    "role missing": ("d.jsonl", chat({"content": "q"}), {}, "PATH:1: messages[0] has the role None; accepted are"),
    "content null": (
        "d.jsonl",
        chat({"role": "user", "content": None}),
        {},
        "PATH:1: messages[0].content must be a string, not None",
    ),
    "content a number": (
        "d.jsonl",
        json.dumps({"conversations": [{"from": "gpt", "value": 4}]}),
        {},
        "PATH:1: conversations[0].value must be a string, not 4",
    ),
    "completion a number": (
        "d.jsonl",
        '{"prompt": "q", "completion": 4}',
        {},
        "PATH:1: completion must be a string or a list of messages, not 4",
    ),
    "output null": (
        "d.jsonl",
        '{"instruction": "q", "output": null}',
        {},
        "PATH:1: output must be a string, not None",
    ),
    "text a list": ("d.jsonl", '{"text": ["a"]}', {}, "PATH:1: text must be a string, not ['a']"),
    "half a character": (
        "d.jsonl",
        '{"text": "ab\\ud800"}',
        {},
        "PATH:1: character 3 of text is half a surrogate pair ('\\ud800'), which is no character; remove it",
    ),
    "no answers": (
        "d.jsonl",
        chat({"role": "user", "content": "q"}) * 2,
        {},
        "data x: none of its 2 rows has an assistant turn (the first is PATH:1), so there is nothing to learn; give "
        "answers, or set `targets: all`",
    ),
    "invalid UTF-8": (
        "d.jsonl",
        GOOD.encode() + b'{"prompt": "caf\xe9"}\n',
        {},
        "PATH:2: byte 16 of the line is not valid UTF-8; save the file as UTF-8",
    ),
    "invalid UTF-8 text": ("d.txt", b"ok\n\xff\n", {}, "PATH:2: byte 1 of the line is not valid UTF-8"),
    "mixed shapes": (
        "d.jsonl",
        GOOD + '{"text": "a"}\n',
        {},
        "PATH:2: a row with the columns `text` where the data began with rows of shape `prompt/completion`; one "
        "dataset has one shape",
    ),
    "unknown shape": (
        "d.jsonl",
        '{"question": "q", "answer": "a"}',
        {},
        "PATH:1: the columns `question`, `answer` are none of the shapes accepted: `messages`, `conversations`, "
        "`prompt/completion`, `instruction/input/output` or `text`; name them with `columns:` of data x, for example "
        "{prompt: question, completion: answer}",
    ),
    "column not there": (
        "d.jsonl",
        '{"question": "q", "answer": "a"}',
        {"columns": {"prompt": "questoin", "completion": "answer"}},
        "PATH:1: columns of data x maps prompt to 'questoin' (did you mean 'question'?), and the row has `question`, "
        "`answer`",
    ),
    "column of ours unknown": (
        "d.jsonl",
        GOOD,
        {"columns": {"promt": "prompt"}},
        "data x: columns has 'promt' (did you mean 'prompt'?); accepted are completion, conversations, input, "
        "instruction, messages, output, prompt, system or text, each followed by the file's own name for it",
    ),
    "gzip that is none": ("d.jsonl.gz", GOOD, {}, "PATH: it cannot be read: Not a gzipped file"),
    "gzip cut short": (
        "d.jsonl.gz",
        gzip.compress(GOOD.encode() * 9, mtime=0)[:-9],
        {},
        "PATH: it cannot be read: Compressed file ended before",
    ),
    "Parquet that is none": ("d.parquet", GOOD, {}, "PATH: not a readable Parquet file: "),
    "CSV cells": ("d.csv", "prompt,completion\na,b\nc\n", {}, "PATH:3: 1 cells where the first line names 2 columns"),
    "CSV header": ("d.csv", "text,text\na,b\n", {}, "PATH:1: the first line must name the columns, each once, not"),
    "CSV quote": ("d.csv", 'text\n"a"b\n', {}, "PATH:2: not valid CSV: "),
    "where column": (
        "d.jsonl",
        '{"text": "t", "task": "a"}',
        {"where": {"tsk": "a"}},
        "data x: where asks for the column 'tsk' (did you mean 'task'?), and the rows have `task` beside their text",
    ),
    "where value": (
        "d.jsonl",
        '{"text": "t", "task": "a"}\n{"text": "t", "task": "b"}',
        {"where": {"task": "c"}},
        "data x: no row is left where task is 'c'; it is 'a', 'b'",
    ),
    "holdout too large": (
        "d.jsonl",
        GOOD * 3,
        {"holdout": 2},
        "data x: holdout is 2, and it has 3 rows of 1 different prompts, so that none would be left to train on; hold "
        "out fewer",
    ),
    "format of a folder": ("d.jsonl/e", GOOD, {"format": "jsonl"}, "is not a file; `format: jsonl` reads one file"),
}


@pytest.mark.parametrize("case", CASES)
def test_message(tmp_path: Path, case: str) -> None:
    name, content, options, expected = CASES[case]
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if case == "format of a folder":
        path = path.parent
    spec = DatasetSpec(path=str(path), **options)
    with pytest.raises(InputError) as caught:
        split_rows({"x": spec}, seed=0, announce=lambda line: None)
    said = str(caught.value)
    assert expected.replace("PATH", str(path)) in said
    assert "\n" not in said
    assert not said.endswith(".")


def test_data_set_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"empty \(split train\): the data set cannot be loaded: .*check the name, the"
    ):
        read_rows("x", DatasetSpec(path=str(tmp_path / "empty")), announce=lambda line: None)
