"""Which rows are evaluated, and how each of them says it is scored.

A row's own columns decide: `metric` (how an answer is scored), `task` (what it is counted under) and, for accuracy,
`choices`. They come with the data because one evaluation set holds rows of several kinds, as the real shop rows do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from preceptor.data.rows import Row
from preceptor.data.split import SplitRows
from preceptor.data.template import Message
from preceptor.errors import InputError, accepted, did_you_mean, shown

if TYPE_CHECKING:
    from preceptor.recipe import DatasetSpec

METRICS = ("exact", "accuracy", "rougeL")
BINARY = ("exact", "accuracy")
"""Metrics whose score of one row is 0 or 1."""
Role = Literal["general", "domain"]


@dataclass(frozen=True)
class Question:
    """One row to evaluate: everything before its last assistant turn asks, that turn is the answer expected.

    `metric` None is measured by likelihood alone; so is plain text, which has no `prompt_messages`.
    """

    row: Row
    task: str
    metric: str | None
    prompt_messages: tuple[Message, ...]
    expected: str | None
    choices: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The prompt as one text: a lone message is its content, several are led by their roles."""
        if len(self.prompt_messages) == 1:
            return self.prompt_messages[0]["content"]
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in self.prompt_messages)

    @property
    def id(self) -> str:
        """SHA-256 of the prompt, of plain text that of the text; rows that ask the same share it."""
        asked = self.prompt if self.prompt_messages else self.row.text or ""
        return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class EvaluationSet:
    """The evaluated rows of one dataset, the same and in the same order for every model.

    `part` says where they come from; `targets` and `max_length` are the dataset's own (None: the stage's).
    """

    name: str
    role: Role
    part: Literal["test", "holdout"]
    questions: tuple[Question, ...]
    targets: Literal["assistant", "all"] | None = None
    max_length: int | None = None


def evaluation_set(
    split: SplitRows, spec: DatasetSpec, *, rows: int | None = None, seed: int = 0, where: str = ""
) -> EvaluationSet:
    """The `test` rows of a dataset where it has some, else its `holdout`.

    Args:
        split: the dataset's rows, parted.
        spec: its `role` (none counts as general), `metric`, `targets` and `max_length`.
        rows: at most this many, those with the smallest sha256 of seed and prompt: another draw for another seed, and
            the same for all models.
        seed: the run's.
        where: how the error begins ("stages.scores.on: ").

    Raises:
        InputError: neither test nor holdout rows, or a row that `question` refuses.
    """
    found = split.test or split.holdout
    if not found:
        raise InputError(
            f"{where}data {split.name} has neither `test` nor `holdout` rows, and rows that were trained on tell "
            "nothing about a model; give it `test: PATH` or `holdout: N`"
        )
    if rows is not None and rows < len(found):
        found = _drawn(found, rows, seed)
    questions = tuple(question(row, spec.metric) for row in found)
    _check_tasks(split.name, questions)
    role: Role = "domain" if spec.role == "domain" else "general"
    return EvaluationSet(
        split.name, role, "test" if split.test else "holdout", questions, spec.targets, spec.max_length
    )


def question(row: Row, default: str | None = None) -> Question:
    """Reads `task`, `metric` and `choices` of a row; `default` is the metric of rows that name none.

    Raises:
        InputError: an unknown metric, a metric without an answer to compare with or a question before it, accuracy
            without choices, or an answer that is not among them.
    """
    metric = _metric(row) or default
    task = row.extra.get("task")
    if task is not None and (not isinstance(task, str) or not task.strip()):
        raise InputError(f"{row.origin}: the task {shown(task)} is no name; write a text, or leave `task` out")
    messages = row.messages or ()
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    expected = None if last is None else messages[last]["content"]
    if metric is not None and expected is None:
        raise InputError(
            f"{row.origin}: has the metric {metric!r} and no assistant turn that holds the right answer; add it, or "
            "leave `metric` out to measure likelihood alone"
        )
    if metric is not None and last == 0:
        raise InputError(
            f"{row.origin}: has the metric {metric!r} and no message before the answer, so nothing is asked; add the "
            "question, or leave `metric` out to measure likelihood alone"
        )
    choices: tuple[str, ...] = ()
    if metric == "accuracy":
        assert expected is not None
        choices = _choices(row)
        if expected.strip() not in (choice.strip() for choice in choices):
            raise InputError(
                f"{row.origin}: its answer {shown(expected)} is not among its choices {shown(list(choices), 120)}; the "
                "right answer must be one of them, letter for letter"
            )
    return Question(row, task or row.dataset, metric, messages[:last] if last is not None else (), expected, choices)


def _metric(row: Row) -> str | None:
    metric = row.extra.get("metric")
    if metric is None or metric == "":
        return None
    if metric not in METRICS:
        raise InputError(
            f"{row.origin}: the metric {shown(metric)} is unknown{did_you_mean(metric, METRICS)}; accepted are "
            f"{accepted(METRICS)}, or leave `metric` out to measure likelihood alone"
        )
    return str(metric)


def _choices(row: Row) -> tuple[str, ...]:
    value: Any = row.extra.get("choices")
    if isinstance(value, str) and value.lstrip().startswith("["):
        # A CSV cell can hold a list only as JSON.
        with suppress(json.JSONDecodeError):
            value = json.loads(value)
    if value is None or value == []:
        raise InputError(
            f"{row.origin}: has the metric 'accuracy' and no `choices`; give the list of answers to choose from, the "
            "right one among them"
        )
    texts = [choice for choice in value if isinstance(choice, str) and choice.strip()] if _is_list(value) else []
    if len(texts) < 2 or len({text.strip() for text in texts}) < len(list(value)):
        raise InputError(
            f"{row.origin}: `choices` is {shown(value)}; give a list of at least two different texts, none of them "
            "empty"
        )
    return tuple(texts)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _check_tasks(name: str, questions: Sequence[Question]) -> None:
    """One task has one metric: a mean of accuracies and ROUGE scores would be a score of nothing."""
    metrics: dict[str, str] = {}
    for each in questions:
        if each.metric is not None and metrics.setdefault(each.task, each.metric) != each.metric:
            raise InputError(
                f"{each.row.origin}: the task {each.task!r} of data {name} has rows of the metrics "
                f"{metrics[each.task]} and {each.metric}; give them different tasks"
            )


def _drawn(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    keys = [hashlib.sha256(f"{seed}\n{row.prompt}".encode("utf-8", "surrogatepass")).digest() for row in rows]
    chosen = sorted(range(len(rows)), key=keys.__getitem__)[:count]
    return [rows[i] for i in sorted(chosen)]
