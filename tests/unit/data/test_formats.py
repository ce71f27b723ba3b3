"""Every format gives the same rows; plain text is split as announced."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from preceptor.data.formats import read_records
from preceptor.data.rows import Row, read_rows
from preceptor.errors import InputError
from preceptor.recipe import DatasetSpec

RECORDS = [
    {"prompt": 'naïve, "quoted"\nquestion 日本', "completion": "first", "task": "a"},
    {"prompt": "second", "completion": "answer\r\n2", "task": "b"},
]


def save(folder: Path, kind: str) -> tuple[str, str]:
    """Writes RECORDS; returns the path and the announced format."""
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in RECORDS)
    if kind == "jsonl":
        (folder / "d.jsonl").write_text("\ufeff" + lines + "\n", encoding="utf-8")
    elif kind == "jsonl.gz":
        (folder / "d.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    elif kind == "json":
        (folder / "d.json").write_text(json.dumps(RECORDS, indent=1))
    elif kind == "json data":
        (folder / "d.json").write_text(json.dumps({"version": 1, "data": RECORDS}))
    elif kind == "json lines":
        (folder / "d.json").write_text(lines)
    elif kind == "csv":
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(RECORDS[0]))
        writer.writeheader()
        writer.writerows(RECORDS)
        (folder / "d.csv").write_bytes(out.getvalue().encode())
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), folder / "d.parquet")
    elif kind == "folder":
        (folder / "set").mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), folder / "set" / "train-0.parquet")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS[:1]), folder / "set" / "test-0.parquet")
        return str(folder / "set"), "data set"
    elif kind == "saved data set":
        import datasets

        datasets.DatasetDict({"train": datasets.Dataset.from_list(RECORDS)}).save_to_disk(str(folder / "set"))
        return str(folder / "set"), "data set"
    name = kind.split(" ")[0]
    return str(folder / f"d.{name}"), {"parquet": "Parquet"}.get(name, name.removesuffix(".gz").upper())


@pytest.mark.parametrize(
    "kind",
    ["jsonl", "jsonl.gz", "json", "json data", "json lines", "csv", "parquet", "folder", "saved data set"],
)
def test_formats_agree(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path, how = save(tmp_path, kind)
    said: list[str] = []
    rows = read_rows("shop", DatasetSpec(path=path), announce=said.append)
    assert said == [f"shop: 2 rows, {how}, `prompt/completion`"]
    for row, record in zip(rows, RECORDS, strict=True):
        assert row.messages == (
            {"role": "user", "content": record["prompt"]},
            {"role": "assistant", "content": record["completion"]},
        )
        assert row.extra == {"task": record["task"]}
        assert row.dataset == "shop"


def test_a_folder_has_splits(tmp_path):
    path, _ = save(tmp_path, "folder")
    assert len(read_rows("shop", DatasetSpec(path=path, split="test"), announce=str)) == 1
    with pytest.raises(InputError, match=r"set \(split dev\): the data set cannot be loaded: .*dev"):
        read_rows("shop", DatasetSpec(path=path, split="dev"), announce=str)


def test_origins_name_the_line(write):
    path = write("d.jsonl", '{"text": "a"}\n\n{"text": "b"}\n')
    assert [origin for origin, _ in read_records("x", path)[1]] == [f"{path}:1", f"{path}:3"]
    path = write("d.csv", 'text\n"a\nb"\nc\n')
    assert [origin for origin, _ in read_records("x", path)[1]] == [f"{path}:3", f"{path}:4"]


def test_several_files(write):
    paths = [write("a.jsonl", '{"text": "a"}\n'), write("b.txt", "b\n\nc\n")]
    said: list[str] = []
    rows = read_rows("x", DatasetSpec(path=paths), announce=said.append)
    assert [row.text for row in rows] == ["a", "b", "c"]
    assert said == ["x: 3 rows, JSONL, text, split at blank lines, `text`"]


@pytest.mark.parametrize(
    ("content", "how", "texts", "lines"),
    [
        (
            "\none\ntwo\n<|endoftext|>\n\nthree\n\nfour\n<|endoftext|>\n",
            "split at <|endoftext|>",
            ["one\ntwo", "three\n\nfour"],
            [2, 6],
        ),
        ("one\ntwo\n \n\nthree\n", "split at blank lines", ["one\ntwo", "three"], [1, 5]),
        ("one\r\n\r\ntwo\r\n", "split at blank lines", ["one", "two"], [1, 3]),
        ("one\ntwo\n\n", "one row per line", ["one", "two"], [1, 2]),
    ],
)
def test_plain_text(write, content, how, texts, lines):
    path = write("d.txt", content)
    said: list[str] = []
    rows = read_rows("x", DatasetSpec(path=path), announce=said.append)
    assert [row.text for row in rows] == texts
    assert [row.origin for row in rows] == [f"{path}:{line}" for line in lines]
    assert said == [f"x: 2 rows, text, {how}, `text`"]


def test_format_can_be_given(write):
    rows = read_rows("x", DatasetSpec(path=write("d.dat", '{"text": "a"}\n'), format="jsonl"), announce=str)
    assert rows == [Row("x", None, "a", {}, rows[0].origin)]


def test_real_files(data_folder):
    said: list[str] = []
    rows = read_rows("shop", DatasetSpec(path=str(data_folder / "ecommerce/ecom_train.jsonl.gz")), announce=said.append)
    assert said == ["shop: 39,179 rows, JSONL, `messages`"]
    assert {"task", "source", "metric"} >= set(rows[0].extra) >= {"task"}
    read_rows("tales", DatasetSpec(path=str(data_folder / "text/tinystories_sample.txt")), announce=said.append)
    assert said[-1] == "tales: 5 rows, text, split at <|endoftext|>, `text`"
    read_rows("wiki", DatasetSpec(path=str(data_folder / "text/wiki_demo.txt")), announce=said.append)
    assert said[-1] == "wiki: 30 rows, text, one row per line, `text`"
