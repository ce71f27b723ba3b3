"""AlpacaEval from outputs to win rates: what an `evaluate` stage calls.

The user's files are read and checked in one go, before a model is loaded or a judge is paid; then outputs are judged
against the baseline, and annotations of other models that the user brings are scored beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preceptor.errors import InputError
from preceptor.evaluation.alpaca_eval.annotating import annotate_alpaca_eval
from preceptor.evaluation.alpaca_eval.files import (
    Annotation,
    Instruction,
    Output,
    instructions_of,
    read_annotations,
    read_outputs,
    same_baseline,
    same_instructions,
)
from preceptor.evaluation.alpaca_eval.prompts import AnnotatorPrompt, read_prompt
from preceptor.evaluation.alpaca_eval.scores import Annotated, summarise
from preceptor.evaluation.judge import Judge, cut_warnings, file_name
from preceptor.evaluation.judged_tables import alpaca_eval_table
from preceptor.recipe.suites import AlpacaEvalSpec


@dataclass(frozen=True)
class AlpacaEvalFiles:
    """The user's files, checked against each other: `outputs` and `annotations` of further models, by model."""

    baseline: list[Output]
    instructions: list[Instruction]
    prompt: AnnotatorPrompt | None
    outputs: Mapping[str, list[Output]]
    annotations: Mapping[str, list[Annotation]]


def read_alpaca_eval_files(spec: AlpacaEvalSpec, models: Collection[str], *, where: str = "") -> AlpacaEvalFiles:
    """Reads and checks every file that `spec` names; nothing else is needed to know that they fit together.

    Args:
        spec: its paths resolved.
        models: the names of the models that are evaluated beside those of the files.
        where: what messages begin with, such as "stages.scores.alpaca_eval.".

    Raises:
        InputError: see the readers; outputs or annotations of other instructions or against another baseline; a
            model's name that is there twice.
    """
    baseline = read_outputs(spec.baseline, where=f"{where}baseline: ")
    prompt = None
    if spec.judge is not None:
        assert spec.prompt is not None
        prompt = read_prompt(spec.prompt, spec.preference, where=f"{where}prompt: ")
    names = list(models)
    outputs: dict[str, list[Output]] = {}
    annotations: dict[str, list[Annotation]] = {}
    for name, path in spec.outputs.items():
        origin = f"{where}outputs.{name}: "
        _new(name, names, origin)
        outputs[name] = read_outputs(path, where=origin)
        same_instructions(baseline, outputs[name], of_baseline=spec.baseline, of_outputs=f"{origin}{path}")
    for name, path in spec.annotations.items():
        origin = f"{where}annotations.{name}: "
        _new(name, names, origin)
        annotations[name] = read_annotations(path, where=origin)
        same_baseline(annotations[name], baseline, of_annotations=f"{origin}{path}", of_baseline=spec.baseline)
    return AlpacaEvalFiles(baseline, instructions_of(baseline), prompt, outputs, annotations)


def evaluate_alpaca_eval(
    spec: AlpacaEvalSpec,
    files: AlpacaEvalFiles,
    answered: Mapping[str, Path],
    directory: Path,
    *,
    judge: Judge | None,
    reference: str | None = None,
    seed: int = 0,
    resamples: int = 1000,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Judges all outputs and scores all annotations; returns `scores.json["alpaca_eval"]` (docs/judges.md).

    Args:
        spec: of the stage.
        files: from `read_alpaca_eval_files`.
        answered: model_outputs.json of the evaluated models, by name.
        directory: where `MODEL/annotations.json` is written.
        judge: None where `spec.judge` is; only annotations that the user brings are scored then.
        reference: the model that the others are compared with.
        seed: of the bootstrap, and of the order in which the judge sees two answers.
        resamples: of the bootstrap.
        log: takes progress, tables and warnings.

    Raises:
        InputError, RunFailed: outputs of other instructions, and from the judge.
    """
    models: dict[str, Annotated] = {}
    warnings: list[str] = []
    if judge is not None and spec.judge is not None:
        assert files.prompt is not None
        for name, outputs in _outputs(files, answered).items():
            pairs = same_instructions(files.baseline, outputs, of_baseline=spec.baseline, of_outputs=name)
            path = directory / file_name(name) / "annotations.json"
            made = annotate_alpaca_eval(pairs, files.prompt, judge, spec, path, name=name, seed=seed, log=log)
            models[name] = Annotated(
                made.rows, "ours" if name in answered else "outputs file", made.changed, made.twice
            )
            if made.one_token and made.one_token == made.replies:
                warnings.append(
                    f"{name}: the judge gave the log-probability of one of the two tokens only, in every reply, so "
                    "that preferences are 1 or 2 and nothing between; see that the endpoint honours `top_logprobs`"
                )
    for name, rows in files.annotations.items():
        models[name] = Annotated(rows, "annotations file")
        warnings += _other_outputs(name, rows, files.baseline)
    entries, differences, found = summarise(
        models, [each.instruction for each in files.instructions], reference=reference, seed=seed, resamples=resamples
    )
    annotators = {name: each.judge for name, each in models.items()}
    if spec.preference == "ranking":  # one token is all that is wanted otherwise
        warnings += cut_warnings(judge)
    warnings = [*_annotator_warnings(annotators), *warnings, *found]
    result = {
        "judge": spec.judge.model if spec.judge is not None else next(iter(annotators.values()), None),
        "baseline": files.baseline[0].generator,
        "instructions": len(files.instructions),
        "preference": spec.preference,
        "order": spec.order,
        "models": entries,
        "differences": differences,
        "usage": None if judge is None else judge.usage.as_dict(),
        "warnings": warnings,
    }
    for line in alpaca_eval_table(result):
        log(line)
    for warning in warnings:
        log(f"warning: {warning}")
    return result


def _outputs(files: AlpacaEvalFiles, answered: Mapping[str, Path]) -> dict[str, list[Output]]:
    return {name: read_outputs(path) for name, path in answered.items()} | dict(files.outputs)


def _other_outputs(name: str, rows: list[Annotation], baseline: list[Output]) -> list[str]:
    ours = {each.instruction: each.output for each in baseline}
    other = sum(each.output_1 != ours[each.instruction] for each in rows)
    if not other:
        return []
    return [
        f"{name}: {other:,} of {len(rows):,} annotations compare with another answer of {baseline[0].generator} than "
        "the baseline's file holds, so that this win rate and those judged here are against different answers"
    ]


def _annotator_warnings(annotators: Mapping[str, str | None]) -> list[str]:
    if len(set(annotators.values())) < 2:
        return []
    listed = ", ".join(f"{name} by {annotator or 'an unnamed one'}" for name, annotator in annotators.items())
    return [
        f"the models were judged by different annotators ({listed}), whose win rates are not on one scale and "
        "are not compared"
    ]


def _new(name: str, names: list[str], origin: str) -> None:
    """Adds a model's name; names that would give one folder are one name here."""
    if file_name(name) in map(file_name, names):
        raise InputError(
            f"{origin}is the name of another model too, or its file's name; give it another name, or leave one of the "
            "two out"
        )
    names.append(name)
