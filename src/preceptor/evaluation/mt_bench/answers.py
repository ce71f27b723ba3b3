"""A model's answers to MT-Bench (arXiv 2306.05685), the second turn of each after its own first answer.

Temperatures are those of the official script, by category; each answer has a seed of its own from the run's seed, the
question, the choice (always 0) and the turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

from preceptor.data.template import Message
from preceptor.errors import InputError, accepted, did_you_mean
from preceptor.evaluation.answering import Answered, AnswerRecord, TimedAnswer, request_seed
from preceptor.evaluation.chats import Answerer, ChatRequest
from preceptor.evaluation.mt_bench.files import ModelAnswer, Question, write_answers
from preceptor.recipe.suites import MtBenchSpec
from preceptor.system.files import sha256_json

TEMPERATURES: Mapping[str, float] = MappingProxyType(
    {
        "writing": 0.7,
        "roleplay": 0.7,
        "stem": 0.1,
        "humanities": 0.1,
        "extraction": 0.0,
        "math": 0.0,
        "coding": 0.0,
        "reasoning": 0.0,
    }
)
"""By category; questions of any other are answered at `OTHER_TEMPERATURE`."""
OTHER_TEMPERATURE = 0.7
CHOICE = 0  # the judge grades the first choice alone


def answer_mt_bench(
    questions: Sequence[Question],
    answerer: Answerer,
    spec: MtBenchSpec,
    path: Path,
    seed: int,
    log: Callable[[str], None] = lambda line: None,
) -> Answered:
    """Writes the official model_answer file, all first turns in one batch and then all second ones.

    A run that was stopped goes on where it was and ends with the same answers; a file that is complete is kept.
    `answer_id` depends on the model's name, the question, the settings and the seed.

    Args:
        questions: see `read_questions`.
        answerer: the model; its name is the file's `model_id`.
        spec: temperatures and the limit of new tokens.
        path: model_answer/NAME.jsonl; NAME.jsonl.record beside it keeps the answers as they come.
        seed: of the run.
        log: takes progress lines and warnings.

    Raises:
        InputError: a temperature for an unknown category, a file of other answers at `path`, or what the model refuses.
        RunFailed: an endpoint stopped answering.
    """
    temperatures = temperatures_of(questions, spec)
    asked = [{key: value for key, value in asdict(each).items() if key != "reference"} for each in questions]
    settings = {
        "max_new_tokens": spec.max_new_tokens,
        "seed": seed,
        **{f"temperatures.{category}": value for category, value in temperatures.items()},
    }
    record = AnswerRecord(path, answerer, asked, settings, log)
    answers: list[list[TimedAnswer]] = [[] for _ in questions]
    turns = max((len(each.turns) for each in questions), default=0)
    for turn in range(turns):
        requests = {
            f"{number}/{turn + 1}": ChatRequest(
                messages=_conversation(question, answers[number], turn),
                max_new_tokens=spec.max_new_tokens,
                temperature=temperatures[question.category],
                seed=request_seed(seed, "mt_bench", question.question_id, CHOICE, turn + 1),
            )
            for number, question in enumerate(questions)
            if turn < len(question.turns)
        }
        found = record.ask(requests, f"MT-Bench, turn {turn + 1} of {turns}")
        for key, answer in found.items():
            answers[int(key.partition("/")[0])].append(answer)
    write_answers(
        path,
        [
            ModelAnswer(
                question_id=question.question_id,
                turns=tuple(each.answer.text for each in given),
                model_id=answerer.name,
                answer_id=sha256_json([record.identity, question.question_id, CHOICE])[:22],
                tstamp=given[-1].tstamp,
            )
            for question, given in zip(questions, answers, strict=True)
        ],
    )
    return record.answered()


def temperatures_of(questions: Sequence[Question], spec: MtBenchSpec) -> dict[str, float]:
    """The sampling temperature of each category that is asked, those of `spec.temperatures` first.

    Raises:
        InputError: `spec.temperatures` names a category that is neither asked nor official.
    """
    categories = list(dict.fromkeys(each.category for each in questions))
    known = list(dict.fromkeys([*categories, *TEMPERATURES]))
    for name in spec.temperatures:
        if name not in known:
            raise InputError(
                f"mt_bench.temperatures: {name!r} is no category of the questions{did_you_mean(name, known)}; accepted "
                f"are {accepted(known)}"
            )
    official = {name: TEMPERATURES.get(name, OTHER_TEMPERATURE) for name in categories}
    return {name: spec.temperatures.get(name, value) for name, value in official.items()}


def _conversation(question: Question, answers: Sequence[TimedAnswer], turn: int) -> tuple[Message, ...]:
    """The turns so far with the model's own answers, and then turn `turn` (from 0)."""
    messages: list[Message] = []
    for asked, given in zip(question.turns[:turn], answers, strict=True):
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": given.answer.text})
    messages.append({"role": "user", "content": question.turns[turn]})
    return tuple(messages)
