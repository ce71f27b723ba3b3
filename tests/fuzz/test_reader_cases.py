"""Data files too large to keep, or made by libraries: what each broke before, or could have."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from fuzz.scaffold import check_message
from preceptor.data import formats
from preceptor.data.rows import Row, read_rows
from preceptor.errors import InputError
from preceptor.recipe import DatasetSpec

GOOD = '{"prompt": "q", "completion": "a"}\n'


def read(path: Path, **spec: Any) -> list[Row]:
    return read_rows("x", DatasetSpec(path=str(path), **spec), announce=lambda line: None)


def refused(path: Path, **spec: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **spec)
    check_message(caught.value)
    return str(caught.value).replace(str(path), "PATH")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("9" * 5000, "PATH:1: not valid JSON: a number of thousands of digits; JSONL has one object per line"),
        ("[" * 100_000, "PATH:1: not valid JSON: too deep; JSONL has one object per line"),
        (
            '{"prompt": "q", "prompt": "r", "completion": "a"}',
            "PATH:1: not valid JSON: the key 'prompt' is given twice; JSONL has one object per line",
        ),
        (
            r'{"prompt": "q", "completion": "a", "task": ["\ud800"]}',
            "PATH:1: character 1 of column 'task' is half a surrogate pair ('\\ud800'), which is no character; "
            "remove it",
        ),
        (
            r'{"prompt": "q", "completion": "\udc00a"}',
            "PATH:1: character 1 of completion is half a surrogate pair ('\\udc00'), which is no character; remove it",
        ),
        (r'{"prompt": "q", "completion": ["\u001b[2J"]}', "PATH:1: completion[0] must be {\"role\": ..., "
         "\"content\": ...}, not '\\x1b[2J'"),
        ('{"messages": ' + "[" * 300 + "]" * 300 + "}", "PATH:1: messages[0] must be {\"role\": ..., \"content\": "
         "...}, not [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[…]]]]]]]]]]]]]]]"),
        ('{"messages": [{"role": "tool", "content": "1"}]}', "PATH:1: messages[0] has the role 'tool'; accepted "
         "are system, user or assistant"),
        ('{"messages": [{"role": ["user"], "content": "1"}]}', "PATH:1: messages[0] has the role ['user']; "
         "accepted are system, user or assistant"),
        ('{"\\u001b]0;x": 1}', "PATH:1: the columns `\\x1b]0;x` are none of the shapes accepted: `messages`, "
         "`conversations`, `prompt/completion`, `instruction/input/output` or `text`; name them with `columns:` of "
         "data x, for example {prompt: question, completion: answer}"),
    ],
)  # fmt: skip
def test_lines_of_json(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(line + "\n" + GOOD)
    assert refused(path) == said


def test_a_cell_that_begins_like_a_list_and_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"prompt": "[" + "9" * 5000, "completion": "[[" * 50_000}) + "\n")
    (row,) = read(path)
    assert row.messages is not None
    assert row.messages[1]["content"] == "[[" * 50_000


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.json", "d.csv", "d.txt"])
def test_a_line_without_end_is_refused_before_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = ".jsonl" not in name  # read so, and then a line may be all of the file
    monkeypatch.setattr(formats, "MAX_WHOLE" if whole else "MAX_LINE", 1 << 20)
    content = b"a" * (40 << 20)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    del content
    tracemalloc.start()
    said = refused(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    mend = "split it, or save it as JSONL" if whole else "split it"
    assert said == f"PATH:1: the line has more than 1,048,576 bytes; {mend}"
    assert peak < 8 << 20


def test_json_in_one_long_line_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every program writes it that is not asked for indentation."""
    monkeypatch.setattr(formats, "MAX_LINE", 64)
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"text": "a line"}] * 50))
    assert len(read(path)) == 50


@pytest.mark.parametrize("name", ["d.json", "d.csv.gz", "d.txt.gz"])
def test_a_small_archive_of_a_huge_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(formats, "MAX_WHOLE", 1 << 20)
    content = b"text\n" * (4 << 20)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    assert refused(path) == "PATH: holds more than 1,048,576 characters; split it, or save it as JSONL"


@pytest.mark.parametrize("cut", [1, 5, 9, 15, -9, -1])
def test_a_damaged_archive(tmp_path: Path, cut: int) -> None:
    whole = gzip.compress(GOOD.encode() * 50, mtime=0)
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(whole[:cut])
    assert refused(path).startswith("PATH: it cannot be read: ")
    path.write_bytes(whole[:cut] + bytes([whole[cut] ^ 0xFF]) + whole[cut:][1:])
    try:
        assert len(read(path)) == 50  # some bytes of the head mean nothing
    except InputError as error:
        check_message(error)


def table(path: Path, **columns: pyarrow.Array) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_tables_of_other_things(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    table(path, text=pyarrow.array([b"\xff\xfe"], pyarrow.binary()))
    assert refused(path) == "PATH: row 1: text must be a string, not b'\\xff\\xfe'"
    broken = pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe"))
    table(path, text=broken)
    assert refused(path).startswith("PATH: not a readable Parquet file: 'utf-8' codec can't decode byte 0xff")
    table(path, text=pyarrow.array(["a"]), day=pyarrow.array([2**60], pyarrow.timestamp("us")))
    assert refused(path).startswith("PATH: not a readable Parquet file: ")
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, ["text", "text"]), path)
    assert refused(path) == "PATH: the column 'text' is there twice; remove one"


def test_a_table_of_millions_of_equal_rows_is_read_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    table(path, text=pyarrow.array(["a" * 100_000] * 2000).dictionary_encode())  # 200 MB, in a file of a few KB
    assert path.stat().st_size < 1 << 20
    _, records = formats.read_records("x", str(path))
    before = pyarrow.default_memory_pool().max_memory()
    tracemalloc.start()
    assert len(next(records)[1]["text"]) == 100_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak + pyarrow.default_memory_pool().max_memory() - before < 100 << 20


def folder(path: Path, card: str, **files: str) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(content)
    (path / "README.md").write_text(f"---\n{card}\n---\n")
    return path


@pytest.mark.parametrize(
    "named",
    ["https://example.org/rows.jsonl", "hf://datasets/owner/name/rows.jsonl", "/etc/passwd", "../secret.jsonl", "~/x"],
)
def test_a_folder_whose_card_names_data_elsewhere(tmp_path: Path, named: str) -> None:
    (tmp_path / "secret.jsonl").write_text(GOOD)
    card = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: [{named}]"
    path = folder(tmp_path / "set", card, rows__jsonl=GOOD)
    assert refused(path) == f"PATH/README.md: names data outside its folder: {named!r}; copy them into the folder"


def test_a_card_that_is_no_yaml(tmp_path: Path) -> None:
    path = folder(tmp_path / "set", "a: &a [*a, *b]", rows__jsonl=GOOD)
    assert refused(path).startswith("PATH/README.md: its head is not YAML (")


def test_a_folder_with_a_script_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "set"
    path.mkdir()
    (path / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert refused(path).startswith("PATH (split train): the data set cannot be loaded: ")
    assert not (tmp_path / "ran").exists()


def test_columns_of_images_are_not_opened(tmp_path: Path) -> None:
    card = "dataset_info:\n  features:\n  - {name: text, dtype: string}\n  - {name: image, dtype: image}"
    rows = '{"text": "a", "image": "http://192.0.2.1/x.png"}\n'
    (row,) = read(folder(tmp_path / "set", card, rows__jsonl=rows))
    assert row.extra["image"] == {"bytes": None, "path": "http://192.0.2.1/x.png"}


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "d.jsonl")
    assert refused(tmp_path / "d.jsonl") == "data x: PATH is not a file; `format: jsonl` reads one file"
