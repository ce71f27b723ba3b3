"""The tasks of lm-evaluation-harness: which of them a recipe may name, and how they are loaded."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from preceptor.errors import InputError, did_you_mean, first_sentence, shown
from preceptor.evaluation.harness import caught
from preceptor.evaluation.task_files import read_task_file
from preceptor.recipe import TasksSpec


def harness_version(where: str) -> str:
    """The installed version as `lm-eval 0.4.13`. Raises InputError where there is none."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(
            f"{where}: needs lm-evaluation-harness, which is not installed; install it with `pip install "
            "'lm-eval>=0.4.13'`, or leave `tasks` out"
        )
    return f"lm-eval {importlib.metadata.version('lm_eval')}"


class Catalogue:
    """The tasks and groups a spec may name: those of its folders and, only where one is not there, the harness's own.

    The harness's own are some 15,000 files of which the index takes seconds. Of two tasks with one name the folder's
    is taken.

    Raises:
        InputError: the harness is not installed, a folder is not there or holds no task file, a name is unknown, or
            two names hold one task.
    """

    def __init__(self, spec: TasksSpec, *, where: str) -> None:
        self.version = harness_version(where)
        self.where = where
        self._folders = [Path(folder).absolute() for folder in spec.include]
        for folder in self._folders:
            if not folder.is_dir():
                raise InputError(f"{where}.include: {folder} is not a folder; give the path of a folder of task files")
            if not any(folder.rglob("*.yaml")):
                raise InputError(
                    f"{where}.include: {folder} holds no task file; give a folder with files whose names end in .yaml"
                )
        from lm_eval.tasks import TaskManager

        with caught():
            self.manager = TaskManager(include_path=self._folders, include_defaults=False)
            if not all(name in self.manager.task_index for name in self._named(spec.names)):
                self.manager = TaskManager(include_path=self._folders)
        for name in spec.names:
            if name not in self.manager.task_index:
                raise InputError(self._unknown(name))
        self._check_once(spec.names)

    def load(self, name: str) -> list[Any]:
        """The harness's tasks of a name, or the one group; their data is read now, where need be from the Hub.

        A relative path of a data file starts in the task file's folder or, if it is not there, in the working
        directory.

        Raises:
            InputError: what the harness or the data's reader says against it.
        """
        entry = self.manager.task_index[name]
        if entry.cfg is None:  # a tag, whose tasks have files of their own
            return [task for member in sorted(entry.tags) for task in self.load(member)]
        file = None if entry.yaml_path is None else Path(entry.yaml_path)
        ours = file is not None and any(file.is_relative_to(folder) for folder in self._folders)
        try:
            found = self.manager.load([name]) if file is None or not ours else self._load_beside(file, name)
        except Exception as error:
            # Task files, their code and the readers of their data raise whatever they like.
            raise InputError(self._refused(name, file if ours else None, error)) from error
        for task in found["tasks"].values():
            if getattr(task, "UNSAFE_CODE", False):
                raise InputError(
                    f"{self.where}.names: {name!r} executes code that a model wrote, which is not done here; leave it "
                    "out, or run it with lm-eval itself in a sandbox"
                )
        return [found["groups"][name]] if name in found.get("groups", {}) else list(found["tasks"].values())

    def _load_beside(self, file: Path, name: str) -> Any:
        try:
            with _working_in(file.parent):
                return self.manager.load([name])
        except FileNotFoundError as missing:
            try:
                return self.manager.load([name])
            except FileNotFoundError:
                raise missing from None

    def _named(self, names: Sequence[str]) -> Iterator[str]:
        """The names and, of groups among them, the members, as far as the index knows them."""
        todo, seen = list(names), set[str]()
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                yield name
                entry = self.manager.task_index.get(name)
                if entry is not None and entry.cfg and "group" in entry.cfg:
                    todo += _members(entry.cfg["task"])

    def _check_once(self, names: Sequence[str]) -> None:
        first: dict[str, tuple[str, str]] = {}
        for name in names:
            for task, holder in self._held(name):
                as_, other = first.setdefault(task, (holder, name))
                if as_ != holder:
                    raise InputError(
                        f"{self.where}.names: {other!r} and {name!r} both ask the task {task!r}, which the harness "
                        "refuses to run twice; keep one of the two"
                    )

    def _held(self, name: str) -> Iterator[tuple[str, str]]:
        """The tasks of a name, as far as the index knows them, each with the group or the task that it is run as."""
        entry = self.manager.task_index[name]
        if entry.cfg is None:  # a tag, whose tasks run as if they had been named
            yield from ((task, task) for task in sorted(entry.tags))
        elif "group" not in entry.cfg:
            yield name, name
        else:
            yield from ((task, name) for task in self._tasks_of(entry.cfg.get("task"), {name}))

    def _tasks_of(self, members: Any, above: set[str]) -> Iterator[str]:
        for member in members if isinstance(members, list) else [members]:
            fields = member if isinstance(member, dict) else {"task": member}
            name = fields.get("group", fields.get("task"))
            entry = self.manager.task_index.get(name) if isinstance(name, str) and name not in above else None
            if entry is None:
                if "group" in fields:  # defined here; so are tasks that the index does not know
                    yield from self._tasks_of(fields.get("task"), above)
            elif entry.cfg is None:
                yield from sorted(entry.tags)
            elif "group" in entry.cfg:
                yield from self._tasks_of(entry.cfg.get("task"), above | {entry.name})
            else:
                yield entry.name

    def _unknown(self, name: str) -> str:
        where = f"{self.where}.names"
        for folder in self._folders:
            for file in sorted(folder.rglob("*.yaml")):
                if said := _unreadable(file):
                    return f"{where}: {name!r} is in no file that can be read, and {file} cannot ({said}); mend it"
        folders = f" or of {', '.join(map(str, self._folders))}" if self._folders else ""
        return (
            f"{where}: {name!r} is no task or group of {self.version}{folders}"
            f"{did_you_mean(name, self.manager.all_tasks)}; `lm-eval ls tasks` lists its own"
        )

    def _refused(self, name: str, file: Path | None, error: Exception) -> str:
        source = f" ({file})" if file is not None else ""
        chain = [error]
        while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and isinstance(before, Exception):
            chain.append(before)
        if any(isinstance(each, ConnectionError) or _CONNECTION in type(each).__name__ for each in chain):
            return (
                f"{self.where}.names: the data of {name!r}{source} is on the Hugging Face Hub and not in its cache, "
                f"and the Hub cannot be reached ({first_sentence(error)}); run it once with a network, or name tasks "
                "whose data is local"
            )
        return f"{self.where}.names: {name!r}{source} cannot be loaded ({_said(error)}); mend it or leave it out"


def _members(value: Any) -> Iterator[str]:
    """The tasks and groups a group's `task` refers to; those it defines itself have data of their own."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _members(each)
    elif isinstance(value, dict) and "dataset_path" not in value:
        yield from _members(value.get("task", []))


_CONNECTION = "ConnectError"  # httpx's; requests' is a ConnectionError of Python's


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {shown(first_sentence(error), 300)[1:-1]}"


def _unreadable(file: Path) -> str | None:
    """What is wrong with a task file, as far as its YAML goes."""
    try:
        value = read_task_file(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        return " ".join(str(error).split())
    return None if isinstance(value, dict) else "it is not a mapping"


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def scored_names(item: Any) -> Iterator[str]:
    """Under which names a loaded task or group has results: a group without a mean of its own, those of its members."""
    from lm_eval.api.group import Group

    if not isinstance(item, Group):
        yield item.task_name
    elif item.has_aggregation:
        yield item.name
    else:
        for member in item:
            yield from scored_names(member)


def leaves(item: Any) -> Iterator[Any]:
    """The tasks of a loaded task or group."""
    from lm_eval.api.group import Group

    if isinstance(item, Group):
        for member in item:
            yield from leaves(member)
    else:
        yield item
