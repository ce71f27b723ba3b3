"""MT-Bench from answers to scores: what an `evaluate` stage calls.

The user's files are read and checked in one go, before a model is loaded or a judge is paid; then answers are judged,
and judgments of other models that the user brings are scored beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preceptor.errors import InputError, accepted
from preceptor.evaluation.judge import Judge, cut_warnings
from preceptor.evaluation.judged_tables import mt_bench_categories, mt_bench_table
from preceptor.evaluation.mt_bench.files import (
    REFERENCE_CATEGORIES,
    Judgment,
    ModelAnswer,
    Question,
    QuestionId,
    read_answers,
    read_judgments,
    read_questions,
    read_references,
)
from preceptor.evaluation.mt_bench.judging import judge_mt_bench, judgment_file
from preceptor.evaluation.mt_bench.prompts import Prompt, read_prompts
from preceptor.evaluation.mt_bench.scores import Judged, summarise
from preceptor.recipe.suites import MtBenchSpec


@dataclass(frozen=True)
class MtBenchFiles:
    """The user's files, checked against each other: `answers` and `judgments` of further models, by model."""

    questions: list[Question]
    references: Mapping[QuestionId, tuple[str, ...]]
    prompts: Mapping[str, Prompt]
    answers: Mapping[str, Mapping[QuestionId, ModelAnswer]]
    judgments: Mapping[str, list[Judgment]]


def read_mt_bench_files(spec: MtBenchSpec, models: Collection[str], *, where: str = "") -> MtBenchFiles:
    """Reads and checks every file that `spec` names; nothing else is needed to know that they fit together.

    Args:
        spec: its paths resolved.
        models: the names of the models that are evaluated beside those of the files.
        where: what messages begin with, such as "stages.scores.mt_bench.".

    Raises:
        InputError: see the readers; references or templates that are missing; a model's name that is there twice.
    """
    questions = read_questions(spec.questions, where=f"{where}questions: ")
    references: Mapping[QuestionId, tuple[str, ...]] = {}
    prompts: Mapping[str, Prompt] = {}
    if spec.judge is not None:
        assert spec.prompts is not None
        prompts = read_prompts(spec.prompts, questions, where=f"{where}prompts: ")
        needing = [each for each in questions if each.category in REFERENCE_CATEGORIES]
        if needing and spec.references is None:
            raise InputError(
                f"{where}references: is missing, and {len(needing):,} of {len(questions):,} questions are of "
                f"{accepted(dict.fromkeys(each.category for each in needing))}, which are graded against reference "
                "answers; give the path of the official reference_answer/gpt-4.jsonl"
            )
    if spec.references is not None:
        references = read_references(spec.references, questions, where=f"{where}references: ")
    answers: dict[str, Mapping[QuestionId, ModelAnswer]] = {}
    for name, path in spec.answers.items():
        _new(name, models, f"{where}answers.{name}: is also the name of an evaluated model")
        answers[name] = read_answers(path, questions, where=f"{where}answers.{name}: ")
    judgments: dict[str, list[Judgment]] = {}
    for number, path in enumerate(spec.judgments):
        origin = f"{where}judgments.{number}: "
        found: dict[str, list[Judgment]] = {}
        for each in read_judgments(path, where=origin):
            found.setdefault(each.model, []).append(each)
        for name in found:
            _new(
                name,
                [*models, *answers, *judgments],
                f"{origin}{path}: has judgments of {name}, which is there already",
            )
        _some_asked(found, questions, f"{origin}{path}", spec.questions)
        judgments |= found
    return MtBenchFiles(questions, references, prompts, answers, judgments)


def evaluate_mt_bench(
    spec: MtBenchSpec,
    files: MtBenchFiles,
    answered: Mapping[str, Path],
    directory: Path,
    *,
    judge: Judge | None,
    reference: str | None = None,
    seed: int = 0,
    resamples: int = 1000,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Judges all answers and scores all judgments; returns `scores.json["mt_bench"]` (docs/judges.md).

    Args:
        spec: of the stage.
        files: from `read_mt_bench_files`.
        answered: model_answer files of the evaluated models, by name.
        directory: where `model_judgment/JUDGE_single.jsonl` is written.
        judge: None where `spec.judge` is; only judgments that the user brings are scored then.
        reference: the model that the others are compared with.
        seed, resamples: of the bootstrap.
        log: takes progress, tables and warnings.

    Raises:
        InputError, RunFailed: answers that are not complete, and from the judge.
    """
    answers = {name: read_answers(path, files.questions) for name, path in answered.items()} | dict(files.answers)
    models: dict[str, Judged] = {}
    if judge is not None and spec.judge is not None and answers:
        path = directory / "model_judgment" / judgment_file(spec.judge.model)
        judgments = judge_mt_bench(files.questions, files.references, files.prompts, answers, judge, spec, path, log)
        for name in answers:
            rows = [each for each in judgments if each.model == name]
            models[name] = Judged(rows, "ours" if name in answered else "answers file")
    models |= {name: Judged(rows, "judgments file") for name, rows in files.judgments.items()}
    judges = {name: str(each.judge) for name, each in models.items()}
    entries, differences, warnings = summarise(
        models, files.questions, reference=reference, seed=seed, resamples=resamples
    )
    warnings = [*_judge_warnings(judges), *cut_warnings(judge), *warnings]
    result = {
        "judge": spec.judge.model if spec.judge is not None else next(iter(judges.values()), None),
        "questions": len(files.questions),
        "categories": list(dict.fromkeys(each.category for each in files.questions)),
        "models": entries,
        "differences": differences,
        "usage": None if judge is None else judge.usage.as_dict(),
        "warnings": warnings,
    }
    for line in (*mt_bench_table(result), *mt_bench_categories(result)):
        log(line)
    for warning in warnings:
        log(f"warning: {warning}")
    return result


def _judge_warnings(judges: Mapping[str, str]) -> list[str]:
    if len(set(judges.values())) < 2:
        return []
    listed = ", ".join(f"{name} by {judge}" for name, judge in judges.items())
    return [
        f"the models were graded by different judges ({listed}), whose scores are not on one scale and are not compared"
    ]


def _new(name: str, names: Collection[str], what: str) -> None:
    if name in names:
        raise InputError(f"{what}; give it another name, or leave one of the two out")


def _some_asked(found: Mapping[str, list[Judgment]], questions: list[Question], origin: str, of_questions: str) -> None:
    asked = {each.question_id for each in questions}
    for name, rows in found.items():
        if not any(each.question_id in asked for each in rows):
            raise InputError(
                f"{origin}: none of the {len(rows):,} judgments of {name} is of a question in {of_questions}; give "
                "judgments of the same questions"
            )
