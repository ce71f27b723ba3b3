"""The official files of MT-Bench: questions, reference answers, model answers and judgments.

Formats are those of FastChat's `llm_judge`, so that its tools read what we write and we read what they wrote. All is
checked when it is read: a missing answer is noticed before the first judgment is paid, not after the last.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from preceptor.errors import InputError, shown
from preceptor.evaluation.json_files import Row, listed, read_jsonl
from preceptor.system.files import write_atomic

QuestionId = int | str
_Key = TypeVar("_Key", bound=Hashable)
REFERENCE_CATEGORIES = ("math", "reasoning", "coding")
"""Categories whose answers are graded against a reference answer."""
OFFICIAL_QUESTIONS = 80
LOWEST, HIGHEST, FAILED = 1.0, 10.0, -1.0
"""Scores a judge is asked for, and the score of a judgment that holds none."""

_QUESTIONS = 'give the official question.jsonl, rows of {"question_id", "category", "turns"}'
_ANSWERS = (
    'give an official model_answer file, rows of {"question_id", "answer_id", "model_id", "choices": [{"index": 0, '
    '"turns": [...]}], "tstamp"}'
)
_REFERENCES = (
    'give the official reference answers (reference_answer/gpt-4.jsonl), rows of {"question_id", "choices": [{"index": '
    '0, "turns": [...]}]}'
)
_JUDGMENTS = (
    'give an official model_judgment file of single answer grading, rows of {"question_id", "model", "judge", '
    '"user_prompt", "judgment", "score", "turn", "tstamp"}'
)
# The official patterns, written so that no digit can be matched in two ways: an endless number takes no endless time.
_SCORE = re.compile(r"\[\[(\d+(?:\.\d*)?)\]\]")
_SCORE_BACKUP = re.compile(r"\[(\d+(?:\.\d*)?)\]")


@dataclass(frozen=True)
class Question:
    """A question of one or two turns. `reference` is the hint some rows of question.jsonl carry; no judge sees it."""

    question_id: QuestionId
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ModelAnswer:
    """One model's answers to one question, a text per turn. `tstamp` is in seconds since 1970."""

    question_id: QuestionId
    turns: tuple[str, ...]
    model_id: str
    answer_id: str
    tstamp: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Judgment:
    """A judge's grade of one turn: 1 to 10, or −1 where no grade was found in `judgment`."""

    question_id: QuestionId
    model: str
    judge: tuple[str, str]
    """The judge's model, and the name of its prompt template."""
    user_prompt: str
    judgment: str
    score: float
    turn: int
    tstamp: float = field(default_factory=time.time)


def parse_score(judgment: str) -> float:
    """The grade in a judge's answer: the first number in double brackets, else in single ones, else −1.

    A number off the scale is taken as it stands, as the official script does; one too large for a float is none.
    """
    found = _SCORE.search(judgment) or _SCORE_BACKUP.search(judgment)
    score = float(found.group(1)) if found else FAILED
    return score if math.isfinite(score) else FAILED


def on_scale(score: float) -> bool:
    """Whether it is a grade from 1 to 10."""
    return LOWEST <= score <= HIGHEST


def read_questions(path: str | Path, *, where: str = "") -> list[Question]:
    """Reads question.jsonl in its order.

    Raises:
        InputError: a broken line, a question without id, category or turns, with more than two turns, or twice.
    """
    found: list[Question] = []
    lines: dict[QuestionId, str] = {}
    for row in read_jsonl(Path(path), _QUESTIONS, where=where):
        question_id = _question_id(row)
        _once(row, lines, question_id, f"question {question_id}")
        turns = _texts(row, "turns", row.value("turns"))
        if not 1 <= len(turns) <= 2:
            row.refuse(f"question {question_id} has {len(turns)} turns, and MT-Bench grades one or two")
        reference = row.fields.get("reference")
        hints = None
        if isinstance(reference, list) and all(isinstance(each, str) for each in reference):
            hints = tuple(reference)
        found.append(Question(question_id, row.text("category", empty=False), turns, hints))
    return found


def read_references(
    path: str | Path, questions: Sequence[Question], *, where: str = ""
) -> dict[QuestionId, tuple[str, ...]]:
    """Reads reference answers, a text per turn, of those questions whose category needs one.

    Raises:
        InputError: a broken line, or a question of math, reasoning or coding without a reference for each turn.
    """
    answers = _answers(Path(path), _REFERENCES, where)
    needed = [each for each in questions if each.category in REFERENCE_CATEGORIES]
    _complete(f"{where}{path}", needed, answers, "has no reference answer for", _REFERENCES)
    return {each.question_id: answers[each.question_id].turns for each in needed}


def read_answers(
    path: str | Path, questions: Sequence[Question], *, where: str = "", partial: bool = False
) -> dict[QuestionId, ModelAnswer]:
    """Reads a model_answer file; of several choices the first is taken, as the official judge does.

    Answers to other questions are left out. `partial` allows questions without an answer.

    Raises:
        InputError: a broken line, a question answered twice, or questions not answered.
    """
    answers = _answers(Path(path), _ANSWERS, where)
    if not partial:
        _complete(f"{where}{path}", questions, answers, "has no answer to", _ANSWERS)
    asked = {each.question_id for each in questions}
    return {question_id: answer for question_id, answer in answers.items() if question_id in asked}


def write_answers(path: str | Path, answers: Iterable[ModelAnswer]) -> None:
    """Writes a model_answer file whole or not at all, its folder made where it is missing."""
    _write(
        Path(path),
        [
            {
                "question_id": each.question_id,
                "answer_id": each.answer_id,
                "model_id": each.model_id,
                "choices": [{"index": 0, "turns": list(each.turns)}],
                "tstamp": each.tstamp,
            }
            for each in answers
        ],
    )


def read_judgments(path: str | Path, *, where: str = "") -> list[Judgment]:
    """Reads a model_judgment file of single answer grading.

    Raises:
        InputError: a broken line, a pairwise file, judges of several models, one model's turn graded twice, or a score
            that is neither −1 nor from 1 to 10. A score off the scale that stands so in the judge's own text is kept.
    """
    found: list[Judgment] = []
    lines: dict[tuple[str, QuestionId, int], str] = {}
    for row in read_jsonl(Path(path), _JUDGMENTS, where=where):
        each = _judgment(row)
        if found and each.judge[0] != found[0].judge[0]:
            row.refuse(f"was judged by {each.judge[0]} and earlier rows by {found[0].judge[0]}; keep one judge a file")
        # The official script would count both in the mean, so that a repeated run weighs some questions double.
        _once(row, lines, (each.model, each.question_id, each.turn), f"{each.model}, {_turn_of(each)}")
        found.append(each)
    return found


def write_judgments(path: str | Path, judgments: Iterable[Judgment]) -> None:
    """Writes a model_judgment file whole or not at all, its folder made where it is missing."""
    _write(
        Path(path),
        [
            {
                "question_id": each.question_id,
                "model": each.model,
                "judge": list(each.judge),
                "user_prompt": each.user_prompt,
                "judgment": each.judgment,
                "score": int(each.score) if each.score == int(each.score) else each.score,
                "turn": each.turn,
                "tstamp": each.tstamp,
            }
            for each in judgments
        ],
    )


def _answers(path: Path, expected: str, where: str) -> dict[QuestionId, ModelAnswer]:
    found: dict[QuestionId, ModelAnswer] = {}
    lines: dict[QuestionId, str] = {}
    for row in read_jsonl(path, expected, where=where):
        question_id = _question_id(row)
        _once(row, lines, question_id, f"the answer to question {question_id}")
        choices = row.value("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            row.refuse(f"`choices` is {shown(choices)} and must be a list of objects")
        turns = _texts(row, "choices[0].turns", choices[0].get("turns"), empty=True)
        model, answer, stamp = (row.fields.get(key) for key in ("model_id", "answer_id", "tstamp"))
        found[question_id] = ModelAnswer(question_id, turns, str(model or ""), str(answer or ""), _stamp(stamp))
    return found


def _judgment(row: Row) -> Judgment:
    if "model_1" in row.fields or "g1_winner" in row.fields:
        row.refuse("is a pairwise judgment")
    judge = row.value("judge")
    if not isinstance(judge, list) or len(judge) != 2 or not all(isinstance(each, str) for each in judge):
        row.refuse(f"`judge` is {shown(judge)} and must be [judge, template]")
    turn = row.value("turn")
    if turn not in (1, 2) or isinstance(turn, bool):
        row.refuse(f"`turn` is {shown(turn)} and must be 1 or 2")
    score, text = row.value("score"), row.text("judgment")
    if isinstance(score, bool) or not isinstance(score, int | float):
        row.refuse(f"`score` is {shown(score)} and must be a number from 1 to 10, or -1 where the judge gave none")
    if score != FAILED and not on_scale(score) and parse_score(text) != score:
        row.refuse(f"`score` is {shown(score)} and must be from 1 to 10, or -1 where the judge gave none")
    prompt = row.fields.get("user_prompt")
    return Judgment(
        question_id=_question_id(row),
        model=row.text("model", empty=False),
        judge=(judge[0], judge[1]),
        user_prompt=prompt if isinstance(prompt, str) else "",
        judgment=text,
        score=float(score),
        turn=int(turn),
        tstamp=_stamp(row.fields.get("tstamp")),
    )


def _stamp(value: Any) -> float:
    """A time in seconds since 1970, 0 where a file says none that can be."""
    return float(value) if type(value) in (int, float) and 0 <= value <= 1e15 else 0.0


def _question_id(row: Row) -> QuestionId:
    value = row.value("question_id")
    if isinstance(value, bool) or not isinstance(value, int | str):
        row.refuse(f"`question_id` is {shown(value)} and must be a whole number or a text")
    return value


def _texts(row: Row, key: str, value: object, *, empty: bool = False) -> tuple[str, ...]:
    texts = [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
    if not isinstance(value, list) or not value or len(texts) != len(value):
        row.refuse(f"`{key}` is {shown(value)} and must be a list of texts, one per turn")
    if not empty and not all(each.strip() for each in texts):
        row.refuse(f"`{key}` is {shown(value)} and has an empty text")
    return tuple(texts)


def _once(row: Row, lines: dict[_Key, str], key: _Key, what: str) -> None:
    if key in lines:
        row.refuse(f"{what} is there a second time (first in line {lines[key]}); keep one of the two")
    lines[key] = row.origin.rpartition(":")[2]


def _turn_of(each: Judgment) -> str:
    return f"question {each.question_id}, turn {each.turn}"


def _complete(
    origin: str, questions: Sequence[Question], answers: Mapping[QuestionId, ModelAnswer], what: str, expected: str
) -> None:
    """Raises InputError unless each question is answered, as many turns as it has."""
    missing = [each.question_id for each in questions if each.question_id not in answers]
    if missing:
        raise InputError(
            f"{origin}: {what} {len(missing):,} of {len(questions):,} questions ({listed(missing)}); "
            f"{expected}, of the same questions"
        )
    short = [each.question_id for each in questions if len(answers[each.question_id].turns) < len(each.turns)]
    if short:
        raise InputError(
            f"{origin}: {what} the second turn of {len(short):,} of {len(questions):,} questions ({listed(short)}); "
            f"{expected}"
        )


def _write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Escaped beyond ASCII: an endpoint can send half a surrogate pair, which UTF-8 cannot hold.
    write_atomic(path, "".join(json.dumps(each, allow_nan=False) + "\n" for each in rows))
