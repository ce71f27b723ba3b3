"""What a task reads from outside its folder is found without the harness, and in its order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from preceptor.evaluation.task_files import read_task_file, task_files
from preceptor.recipe.suites import TasksSpec

Found = Callable[..., list[str]]


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Found:
    """The files of one task file's text, relative to the folder above `suite` and the working directory `here`."""
    for name in (
        "data/a.jsonl",
        "data/b.jsonl",
        "data/deep/c.csv",
        "here/a.jsonl",
        "here/e.jsonl",
        "suite/in.jsonl",
        "suite/d.jsonl",
        "here/d.jsonl",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path / "here")

    def find(text: str, file: str = "task.yaml") -> list[str]:
        (tmp_path / "suite" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "suite" / file).write_text(text.replace("ROOT", str(tmp_path)))
        spec = TasksSpec(names=["t"], include=[str(tmp_path / "suite")])
        return [path.relative_to(tmp_path).as_posix() for path in task_files(spec)]

    return find


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("{data_files: ROOT/data/a.jsonl}", ["data/a.jsonl"]),
        ("{data_files: {test: ../data/b.jsonl, train: [../data/a.jsonl]}}", ["data/b.jsonl", "data/a.jsonl"]),
        ("{data_files: [in.jsonl, ROOT/data/a.jsonl]}", ["data/a.jsonl"]),
        ("{data_files: {test: in.jsonl}}", []),
        ('{data_files: "ROOT/data/*.jsonl"}', ["data/a.jsonl", "data/b.jsonl"]),
        ('{data_files: "../data/**/*.csv"}', ["data/deep/c.csv"]),
        ("{data_files: e.jsonl}", ["here/e.jsonl"]),
        ("{data_files: d.jsonl}", []),
        # All from the task file's folder or all from the working directory, as they are loaded.
        ("{data_files: [d.jsonl, e.jsonl]}", ["here/d.jsonl", "here/e.jsonl"]),
        ("{data_files: [in.jsonl, e.jsonl]}", ["here/e.jsonl"]),  # not complete in either
        ("{data_files: 'zip://x.jsonl::ROOT/data/a.jsonl'}", ["data/a.jsonl"]),
        ("{data_files: https://example.org/a.jsonl}", []),
        ("{data_files: ROOT/data/none.jsonl}", []),
        ("{data_dir: ../data}", ["data/a.jsonl", "data/b.jsonl", "data/deep/c.csv"]),
        ("{data_dir: ../data, data_files: b.jsonl}", ["data/b.jsonl"]),
        ("{data_files: 3, data_dir: [1]}", []),
        ("nothing", []),
    ],
)
def test_data_files(found: Found, data: str, expected: list[str]) -> None:
    assert found(f"task: t\ndataset_path: json\ndataset_kwargs: {data}\n") == expected
    assert found(f"group: t\ntask: [other, {{task: t, dataset_path: json, dataset_kwargs: {data}}}]\n") == expected


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("ROOT/data/deep", ["data/deep/c.csv"]),
        ("../data", ["data/a.jsonl", "data/b.jsonl", "data/deep/c.csv"]),
        ("../data/a.jsonl", ["data/a.jsonl"]),
        ("some/dataset", []),
        ("json", []),
    ],
)
def test_a_folder_as_dataset(found: Found, dataset: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "here" / "json").mkdir()
    (tmp_path / "here" / "json" / "x.json").touch()
    assert found(f"task: t\ndataset_path: {dataset}\n") == expected


def test_a_name_on_the_hub_with_files_there(found: Found) -> None:
    assert found("task: t\ndataset_path: some/dataset\ndataset_kwargs: {data_files: a.jsonl}\n") == []


def test_included_files_and_functions(found: Found, tmp_path: Path) -> None:
    (tmp_path / "common.yaml").write_text(
        "dataset_path: json\ndataset_kwargs: {data_files: ../data/a.jsonl}\ninclude: data/more.yaml\n"
        "process_docs: !function tools.clean\n"
    )
    (tmp_path / "data" / "more.yaml").write_text("include: ../common.yaml\n")  # a circle
    (tmp_path / "tools.py").touch()
    (tmp_path / "suite" / "own.py").touch()
    text = "task: t\ninclude: ../common.yaml\ndoc_to_text: !function own.f\ndoc_to_target: !function json.dumps\n"
    assert found(text) == ["common.yaml", "tools.py", "data/more.yaml", "data/a.jsonl"]
    text += "dataset_kwargs: {data_files: ../data/b.jsonl}\n"  # its own word counts
    assert found(text) == ["common.yaml", "tools.py", "data/more.yaml", "data/b.jsonl"]


@pytest.mark.parametrize(
    "text", ["task: [t\n", "- a list\n", "task: !unknown x\n", "", "task: t\ninclude: none.yaml\n"]
)
def test_what_cannot_be_read_has_no_files(found: Found, text: str) -> None:
    assert found(text) == []


def test_files_keep_their_order_and_are_there_once(found: Found) -> None:
    found(
        "task: b\ndataset_path: json\ndataset_kwargs: {data_files: [ROOT/data/a.jsonl, ROOT/data/b.jsonl]}\n", "b.yaml"
    )
    assert found("task: a\ndataset_path: json\ndataset_kwargs: {data_files: ROOT/data/b.jsonl}\n", "z/a.yaml") == [
        "data/a.jsonl",
        "data/b.jsonl",
    ]


def test_functions_are_named_and_not_imported(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("a: !function utils.f\nb: !function [x]\n")
    functions: list[str] = []
    assert read_task_file(tmp_path / "t.yaml", functions) == {"a": None, "b": None}
    assert functions == ["utils.f"]
