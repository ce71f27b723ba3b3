"""Single-answer grading of MT-Bench: the judge sees a conversation up to the turn it grades, and gives 1 to 10.

All requests of all models go to the judge together, so that it is kept busy to the last. Its replies are cached as they
come; the judgment file is written whole at the end, from the cache after a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from preceptor.evaluation.endpoint import Completion
from preceptor.evaluation.judge import Judge, file_name
from preceptor.evaluation.mt_bench.files import (
    FAILED,
    Judgment,
    ModelAnswer,
    Question,
    QuestionId,
    parse_score,
    write_judgments,
)
from preceptor.evaluation.mt_bench.prompts import Prompt, fill_values, template_name
from preceptor.recipe.suites import MtBenchSpec

Answers = Mapping[QuestionId, ModelAnswer]


def judgment_file(judge: str) -> str:
    """The name of the official file: `JUDGE_single.jsonl`, where JUDGE is what the judge is called as a file."""
    return f"{file_name(judge)}_single.jsonl"


def judge_mt_bench(
    questions: Sequence[Question],
    references: Mapping[QuestionId, Sequence[str]],
    prompts: Mapping[str, Prompt],
    answers: Mapping[str, Answers],
    judge: Judge,
    spec: MtBenchSpec,
    path: Path,
    log: Callable[[str], None],
) -> list[Judgment]:
    """Has every turn of every model's answers graded, and writes the official judgment file.

    Args:
        questions: what was asked.
        references: reference answers of the questions of math, reasoning and coding.
        prompts: the judge's templates by name, from `read_prompts`.
        answers: by model and question, from `read_answers`.
        judge: grades at temperature 0, up to `spec.judge_max_tokens` tokens.
        spec: of the stage.
        path: the file to write.
        log: takes a line.

    Returns:
        Judgments by model, question and turn, in this order. A reply without a grade has the score −1.

    Raises:
        InputError, RunFailed: from the judge.
    """
    assert spec.judge is not None
    tasks: list[tuple[str, Question, int, str]] = []
    requests = []
    for model, theirs in answers.items():
        for question in questions:
            for turn in range(1, len(question.turns) + 1):
                name = template_name(question, turn)
                values = fill_values(
                    question, theirs[question.question_id].turns, references.get(question.question_id), turn
                )
                tasks.append((model, question, turn, name))
                requests.append(Completion(prompts[name].messages(values), max_tokens=spec.judge_max_tokens))
    found: dict[int, Judgment] = {}
    for index, reply in judge.complete(requests, "MT-Bench judgments"):
        model, question, turn, name = tasks[index]
        found[index] = Judgment(
            question_id=question.question_id,
            model=model,
            judge=(spec.judge.model, name),
            user_prompt=requests[index].messages[-1]["content"],
            judgment=reply.text,
            score=parse_score(reply.text),
            turn=turn,
        )
    judgments = [found[index] for index in range(len(tasks))]
    write_judgments(path, judgments)
    failed = sum(each.score == FAILED for each in judgments)
    log(f"MT-Bench: {len(judgments):,} judgments, {failed:,} without a grade")
    return judgments
