"""Greedy answers to prompts, in batches, and how many of them equal the reference exactly.

The strictest of answer metrics and the only one the pocket study needs: its tasks have one right answer each, so a
character too many is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preceptor.evaluation.answers import exact, greedy_answers


@dataclass(frozen=True)
class Question:
    """A prompt as messages, its reference answer, and the task it is counted under."""

    messages: Sequence[Mapping[str, str]]
    answer: str
    task: str


@dataclass(frozen=True)
class ExactMatch:
    """What a model answered and which answers were right, in the order of the questions."""

    questions: tuple[Question, ...]
    answers: tuple[str, ...]

    @property
    def correct(self) -> tuple[bool, ...]:
        return tuple(bool(exact(a, q.answer)) for q, a in zip(self.questions, self.answers, strict=True))

    @property
    def by_task(self) -> dict[str, float]:
        """{task: share of right answers}, tasks in the order they first appear."""
        outcomes: dict[str, list[bool]] = {}
        for question, right in zip(self.questions, self.correct, strict=True):
            outcomes.setdefault(question.task, []).append(right)
        return {task: sum(found) / len(found) for task, found in outcomes.items()}

    @property
    def score(self) -> float:
        """Mean over tasks, so that a task with many questions weighs no more than another."""
        by_task = self.by_task
        return sum(by_task.values()) / len(by_task)


def questions_of(rows: Iterable[Mapping[str, Any]]) -> list[Question]:
    """Questions from rows {"messages": [..., assistant turn], "task": name}: the last turn is the reference."""
    return [Question(row["messages"][:-1], row["messages"][-1]["content"], str(row.get("task", "all"))) for row in rows]


def exact_match(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 128,
) -> ExactMatch:
    """Greedy answers of `model` to `questions`, compared with their references.

    Args:
        model: a causal language model; it answers in evaluation mode and is left in the mode it came in.
        tokenizer: with the chat template the model was trained on.
        questions: at least one.
        max_new_tokens: an answer not ended by then is cut there.
        batch_size: prompts answered together; it changes the time, not which answers are right (beyond rounding).

    Raises:
        ValueError: no questions.
    """
    if not questions:
        raise ValueError("exact_match: no questions were given; give at least one row with an answer")
    prompts: list[list[int]] = [
        tokenizer.apply_chat_template(
            [dict(message) for message in question.messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )["input_ids"]
        for question in questions
    ]
    training = model.training
    model.eval()
    try:
        answers = greedy_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    finally:
        model.train(training)
    return ExactMatch(tuple(questions), tuple(answers))
