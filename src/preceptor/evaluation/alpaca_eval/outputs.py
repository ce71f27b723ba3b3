"""A model's answers to AlpacaEval's instructions, in the official model_outputs.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from preceptor.evaluation.alpaca_eval.files import Instruction, Output, write_outputs
from preceptor.evaluation.answering import Answered, AnswerRecord, request_seed
from preceptor.evaluation.chats import Answerer, ChatRequest
from preceptor.recipe.suites import AlpacaEvalSpec


def answer_alpaca_eval(
    instructions: Sequence[Instruction],
    answerer: Answerer,
    spec: AlpacaEvalSpec,
    path: Path,
    seed: int,
    log: Callable[[str], None] = lambda line: None,
) -> Answered:
    """Writes model_outputs.json, one answer per instruction in their order.

    A run that was stopped goes on where it was and ends with the same answers; a file that is complete is kept.

    Args:
        instructions: none twice; each one's answer has a seed of its own, from the run's seed and its text.
        answerer: the model; its name is the file's `generator`.
        spec: temperature and the limit of new tokens.
        path: the file; model_outputs.json.record beside it keeps the answers as they come.
        seed: of the run.
        log: takes progress lines and warnings.

    Raises:
        InputError: a file of other answers at `path`, or what the model refuses.
        RunFailed: an endpoint stopped answering.
    """
    settings = {"max_new_tokens": spec.max_new_tokens, "temperature": spec.temperature, "seed": seed}
    record = AnswerRecord(path, answerer, [asdict(each) for each in instructions], settings, log)
    requests = {
        str(number): ChatRequest(
            messages=({"role": "user", "content": each.instruction},),
            max_new_tokens=spec.max_new_tokens,
            temperature=spec.temperature,
            seed=request_seed(seed, "alpaca_eval", each.instruction),
        )
        for number, each in enumerate(instructions)
    }
    found = record.ask(requests, "AlpacaEval")
    write_outputs(
        path,
        [
            Output(each.instruction, found[str(number)].answer.text, answerer.name, each.dataset)
            for number, each in enumerate(instructions)
        ],
    )
    return record.answered()
