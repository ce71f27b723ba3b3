"""Runs one model over the evaluated rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preceptor.evaluation.answers import exact, greedy_answers, rouge_l
from preceptor.evaluation.choices import choice_log_likelihoods
from preceptor.evaluation.encode import EncodedQuestion
from preceptor.evaluation.likelihood import RowSums, row_sums
from preceptor.evaluation.progress import Progress
from preceptor.evaluation.rows import EvaluationSet, Question
from preceptor.signals import Teacher

Log = Callable[[str], None]
SCORERS: Mapping[str, Callable[[str, str], float]] = {"exact": exact, "rougeL": rouge_l}


@dataclass(frozen=True)
class Settings:
    """How models are run: tokens of a row (prompt and answer), of a written answer, and rows at once."""

    max_length: int = 2048
    max_new_tokens: int = 64
    batch_size: int = 32


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Sequence[tuple[EvaluationSet, Sequence[EncodedQuestion]]],
    settings: Settings,
    *,
    teachers: Mapping[str, Teacher] | None = None,
    title: str = "model",
    log: Log = lambda line: None,
) -> list[dict[str, Any]]:
    """One prediction per row, as docs/scores.md describes them, dataset after dataset.

    Args:
        model: on its device; it is put into evaluation mode and left there.
        tokenizer: the one `sets` are encoded with.
        sets: the rows, with their tokens one for one.
        settings: lengths and batch.
        teachers: by role ("general", "domain"), the model that KL and agreement compare with there; they share the
            tokenizer.
        title: how progress lines begin.
        log: takes progress lines.
    """
    model.eval()
    found: list[dict[str, Any]] = []
    for data, encoded in sets:
        assert len(data.questions) == len(encoded)
        answers = _answers(model, tokenizer, data, encoded, settings, lambda what, n: Progress(what, n, log), title)
        assert isinstance(tokenizer.pad_token_id, int)
        sums = row_sums(
            model,
            [each.answered for each in encoded],
            vocabulary=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            batch_size=settings.batch_size,
            teacher=(teachers or {}).get(data.role),
            advance=Progress(f"{title}: {data.name}, likelihood", len(encoded), log),
        )
        for row, question in enumerate(data.questions):
            found.append({**_asked(data, row, question), **answers.get(row, _UNSCORED), **_measured(sums, row)})
    return found


_UNSCORED: dict[str, Any] = {"answer": None, "score": None, "choices": None, "log_likelihoods": None}


def _asked(data: EvaluationSet, row: int, question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "dataset": data.name,
        "row": row,
        "role": data.role,
        "task": question.task,
        "metric": question.metric,
        "prompt": question.prompt,
        "expected": question.expected,
    }


def _measured(sums: RowSums, row: int) -> dict[str, Any]:
    return {
        "targets": int(sums.targets_R[row]),
        "nll": float(sums.nll_R[row]),
        "kl": None if sums.kl_R is None else float(sums.kl_R[row]),
        "agree": None if sums.agree_R is None else int(sums.agree_R[row]),
    }


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: EvaluationSet,
    encoded: Sequence[EncodedQuestion],
    settings: Settings,
    progress: Callable[[str, int], Progress],
    title: str,
) -> dict[int, dict[str, Any]]:
    """Answers and scores by row, for rows that have a metric."""
    found: dict[int, dict[str, Any]] = {}
    choosing = [row for row, each in enumerate(encoded) if each.choices]
    if choosing:
        assert isinstance(tokenizer.pad_token_id, int)
        likelihoods = choice_log_likelihoods(
            model,
            [encoded[row].choices for row in choosing],
            pad_token_id=tokenizer.pad_token_id,
            batch_size=settings.batch_size,
            advance=progress(f"{title}: {data.name}, choices", len(choosing)),
        )
        for row, sums in zip(choosing, likelihoods, strict=True):
            question = data.questions[row]
            answer = question.choices[int(np.argmax(sums))]
            assert question.expected is not None
            found[row] = {
                "answer": answer,
                "score": exact(answer, question.expected),
                "choices": list(question.choices),
                "log_likelihoods": sums,
            }
    writing = [row for row, each in enumerate(encoded) if each.prompt is not None]
    if writing:
        written = greedy_answers(
            model,
            tokenizer,
            [each.prompt for each in encoded if each.prompt is not None],
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
            context=settings.max_length,
            advance=progress(f"{title}: {data.name}, answers", len(writing)),
        )
        for row, answer in zip(writing, written, strict=True):
            question = data.questions[row]
            assert question.metric is not None
            assert question.expected is not None
            score = SCORERS[question.metric](answer, question.expected)
            found[row] = {**_UNSCORED, "answer": answer, "score": score}
    return found
