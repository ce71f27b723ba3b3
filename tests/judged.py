"""What tests of MT-Bench and AlpacaEval share: a judge in memory, and small files in the official formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from preceptor.errors import InputError
from preceptor.evaluation.endpoint import Completion, Reply
from preceptor.evaluation.usage import Usage

PROMPT = (
    "<|im_start|>system\nYou rank.\n<|im_end|>\n<|im_start|>user\n{instruction} {output_1} {output_2}%s\n<|im_end|>\n"
)
RANKING = PROMPT % " model_1 model_2"
TOKENS = PROMPT % " m M"
SINGLE = {
    "single-v1": "[{question}] [{answer}]",
    "single-math-v1": "[{question}] [{ref_answer_1}] [{answer}]",
    "single-v1-multi-turn": "[{question_1}] [{answer_1}] [{question_2}] [{answer_2}]",
    "single-math-v1-multi-turn": (
        "[{ref_answer_1}] [{ref_answer_2}] [{question_1}] [{answer_1}] [{question_2}] [{answer_2}]"
    ),
}


class FakeJudge:
    """Answers by a function of the request, last request first; keeps what it was asked."""

    def __init__(self, answer: Callable[[Completion], str | Reply]) -> None:
        self.answer = answer
        self.usage = Usage()
        self.asked: list[Completion] = []

    def complete(self, requests: Sequence[Completion], what: str) -> Iterator[tuple[int, Reply]]:
        for index in reversed(range(len(requests))):
            self.asked.append(requests[index])
            said = self.answer(requests[index])
            yield index, said if isinstance(said, Reply) else reply(said)

    def no_logprobs(self) -> InputError:
        return InputError("no log-probabilities")


def reply(text: str, logprobs: tuple[dict[str, float], ...] | None = None) -> Reply:
    return Reply(text, "stop", logprobs, prompt_tokens=10, completion_tokens=5, cached=False, model="fake")


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows))
    return path


def question_rows(*categories: str, turns: int = 2) -> list[dict[str, Any]]:
    """Rows of question.jsonl, ids from 81."""
    return [
        {"question_id": 81 + i, "category": name, "turns": [f"q{81 + i}.{turn}" for turn in range(1, turns + 1)]}
        for i, name in enumerate(categories)
    ]


def answer_rows(*ids: int, model: str = "m", turns: int = 2) -> list[dict[str, Any]]:
    return [
        {
            "question_id": each,
            "answer_id": f"id{each}",
            "model_id": model,
            "choices": [{"index": 0, "turns": [f"{model}{each}.{turn}" for turn in range(1, turns + 1)]}],
            "tstamp": 1.5,
        }
        for each in ids
    ]


def prompt_rows() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "type": "single",
            "system_prompt": f"system of {name}",
            "prompt_template": template,
            "output_format": "[[rating]]",
        }
        for name, template in SINGLE.items()
    ]


def judgment_row(question: int, turn: int, score: float, model: str = "m", **changes: Any) -> dict[str, Any]:
    return {
        "question_id": question,
        "model": model,
        "judge": ["gpt-4", "single-v1" if turn == 1 else "single-v1-multi-turn"],
        "user_prompt": "p",
        "judgment": f"Rating: [[{score}]]",
        "score": score,
        "turn": turn,
        "tstamp": 1.5,
        **changes,
    }


def output_rows(*outputs: str, generator: str = "base", **changes: Any) -> list[dict[str, Any]]:
    """Rows of model_outputs.json, instructions `do 1`, `do 2`, …"""
    return [
        {"dataset": "d", "instruction": f"do {i}", "output": text, "generator": generator, **changes}
        for i, text in enumerate(outputs, 1)
    ]


def annotation_rows(*preferences: float | None, generator: str = "m", baseline: str = "base") -> list[dict[str, Any]]:
    return [
        {
            "instruction": f"do {i}",
            "output_1": f"b{i}",
            "generator_1": baseline,
            "dataset": "d",
            "output_2": f"m{i}",
            "generator_2": generator,
            "annotator": "gpt4",
            "preference": preference,
            "price_per_example": None,
            "time_per_example": None,
        }
        for i, preference in enumerate(preferences, 1)
    ]


def as_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path
