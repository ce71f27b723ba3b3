"""The local files that task files (YAML of lm-evaluation-harness) read from outside their folders, without the harness.

What a task measures depends on them as on the task file itself, so they belong to the identity of what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from preceptor.recipe import TasksSpec

_FORMATS = {"arrow", "cache", "csv", "eval", "hdf5", "json", "lance", "pandas", "parquet", "sql", "text", "xml"}
_BUILDERS = _FORMATS | {"audiofolder", "imagefolder", "pdffolder", "videofolder", "webdataset"}
"""Values of `dataset_path` that `datasets` takes for a file format, not for a folder."""


def task_files(spec: TasksSpec) -> list[Path]:
    """Files outside the folders of `spec.include` that the task files in them name, in an order that does not change.

    These are the files of `dataset_kwargs` (`data_files`, `data_dir`), a local folder as `dataset_path`, YAML files of
    `include`, and the modules of `!function`. What is on the Hub, or what Python code opens, is not among them, nor
    what does not exist. Relative paths are looked for in the task file's folder, and if not all are there in the
    working directory. Takes what parsing the YAML takes.

    Args:
        spec: its folders resolved.
    """
    folders = [Path(folder).resolve() for folder in spec.include]
    found: dict[Path, None] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.yaml")):
            found |= dict.fromkeys(each.resolve() for each in _named(file))
    return [each for each in found if not any(each.is_relative_to(folder) for folder in folders)]


def read_task_file(file: Path, functions: list[str] | None = None) -> Any:
    """The YAML of a task file; what it says of Python functions is put into `functions` and not looked up.

    Raises:
        OSError, ValueError, yaml.YAMLError: it cannot be read.
    """

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    def function(loader: Any, node: Any) -> None:
        if functions is not None and isinstance(node, yaml.ScalarNode):
            functions.append(str(node.value))

    Loader.add_constructor("!function", function)
    return yaml.load(file.read_text(encoding="utf-8"), Loader)


def _named(file: Path) -> Iterator[Path]:
    read: dict[Path, None] = {}
    config = _merged(file, read)
    yield from read
    yield from _data(config, file.parent)


def _merged(file: Path, read: dict[Path, None]) -> dict[str, Any]:
    """The keys of a task file over those of the files it includes; `read` gets these files and Python modules."""
    read[file] = None
    functions: list[str] = []
    try:
        config = read_task_file(file, functions)
    except (OSError, ValueError, yaml.YAMLError):  # the catalogue says so where it matters
        return {}
    for function in functions:
        module = file.parent / f"{function.rpartition('.')[0].replace('.', '/')}.py"
        if module.is_file():
            read[module] = None
    if not isinstance(config, dict):
        return {}
    merged: dict[str, Any] = {}
    for name in _texts(config.pop("include", None)):
        if (other := (file.parent / name).resolve()).is_file() and other not in read:
            merged |= _merged(other, read)
    return merged | config


def _data(value: Any, folder: Path) -> Iterator[Path]:
    """The data files of a task, and of all tasks that a group defines itself."""
    if isinstance(value, list):
        for each in value:
            yield from _data(each, folder)
    elif isinstance(value, dict):
        kwargs = value.get("dataset_kwargs")
        yield from _data_files(value.get("dataset_path"), kwargs if isinstance(kwargs, dict) else {}, folder)
        yield from _data(value.get("task"), folder)


def _data_files(dataset: Any, kwargs: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    local = dataset if isinstance(dataset, str) and dataset not in _BUILDERS else None
    inside = [each for each in (local, kwargs.get("data_dir")) if isinstance(each, str)]
    named = [each.rpartition("::")[2] for each in _texts(kwargs.get("data_files"))]  # zip://INSIDE::ARCHIVE
    patterns = named or (["**/*"] if inside else [])
    found: list[list[Path]] = []
    for start in (folder, Path.cwd()):
        base = start.joinpath(*inside)
        if local is not None and (start / local).is_file():
            yield start / local
        # A name on the Hub is no folder here; its `data_files` are there too.
        matches = [_matches(base / each) for each in patterns] if not inside or base.is_dir() else []
        if matches and all(matches):
            found = matches
            break
        found += matches
    for paths in found:
        yield from paths


def _matches(pattern: Path) -> list[Path]:
    """The files of a name with or without `*`; none for a URL, whose `//` is no part of a path that exists."""
    if pattern.is_file():
        return [pattern]
    root = Path(pattern.anchor)
    return sorted(each for each in root.glob(str(pattern.relative_to(root))) if each.is_file())


def _texts(value: Any) -> list[str]:
    """All texts in a text, a list or the values of a mapping, as `data_files` and `include` are written."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inside for text in _texts(each)]
