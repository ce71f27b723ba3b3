"""Greedy answers to prompts, in batches, and how many of them equal the reference exactly.

The strictest of answer metrics and the only one the pocket study needs: its tasks have one right answer each, so a
character too many is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preceptor.models.sampling import sample


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
        return tuple(a.strip() == q.answer.strip() for q, a in zip(self.questions, self.answers, strict=True))

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
    answers = [""] * len(questions)
    # Prompts of similar length together: less padding.
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            found = greedy(model, tokenizer, [prompts[i] for i in chosen], max_new_tokens=max_new_tokens)
            for i, tokens in zip(chosen, found, strict=True):
                answers[i] = str(tokenizer.decode(tokens, skip_special_tokens=True))
    finally:
        model.train(training)
    return ExactMatch(tuple(questions), tuple(answers))


def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
) -> list[list[int]]:
    """The most likely next token again and again, for all prompts at once; the end-of-sequence token is left out.

    Whose tokens they are does not depend on what else is in the batch; see `sampling.sample`.
    """
    end = tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    # At temperature 0 the numbers are not looked at; how many there are is how long an answer may get.
    unused = [torch.zeros(max_new_tokens, dtype=torch.float64)] * len(prompts)
    written = sample(model, prompts, unused, stop={end}, temperature=0.0, pad_token_id=pad)
    return [row.tokens for row in written]
