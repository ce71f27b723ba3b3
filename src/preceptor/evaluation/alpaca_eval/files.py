"""The official files of AlpacaEval: model_outputs.json and annotations.json.

In an annotation `output_1` is the baseline's and `output_2` the model's, and `preference` says whose answer the judge
preferred: 1 the baseline's, 2 the model's, 1.5 neither. Older files write a tie as 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preceptor.errors import InputError, shown
from preceptor.evaluation.json_files import Row, read_json_list
from preceptor.system.files import write_atomic

OFFICIAL_INSTRUCTIONS = 805
NO_DATASET = "instructions"
"""The dataset of rows that name none."""

_OUTPUTS = 'give a model_outputs.json of AlpacaEval, a list of {"instruction", "output", "generator", "dataset"}'
_ANNOTATIONS = (
    'give an annotations.json of AlpacaEval, a list of {"instruction", "output_1", "generator_1", "output_2", '
    '"generator_2", "preference"}'
)


@dataclass(frozen=True)
class Instruction:
    """What is asked, and the data set it comes from."""

    instruction: str
    dataset: str


@dataclass(frozen=True)
class Output:
    """A model's answer to an instruction; `generator` is the model's name."""

    instruction: str
    output: str
    generator: str
    dataset: str = NO_DATASET


@dataclass(frozen=True)
class Annotation:
    """A judge's preference between two answers, 1 (baseline) to 2 (model); None where none could be read."""

    instruction: str
    output_1: str
    generator_1: str
    output_2: str
    generator_2: str
    annotator: str
    preference: float | None
    dataset: str = NO_DATASET
    price: float | None = None
    """What the judge took for it, in the currency of its price."""
    raw_completion: Any = None
    """What the judge answered: JSON of the annotator's own form."""


def instructions_of(outputs: Sequence[Output]) -> list[Instruction]:
    """What the rows of a model_outputs.json ask, in their order."""
    return [Instruction(each.instruction, each.dataset) for each in outputs]


def read_outputs(path: str | Path, *, where: str = "") -> list[Output]:
    """Reads a model_outputs.json in its order.

    Raises:
        InputError: a broken or empty file, a row without instruction, output or generator, an instruction twice, or
            answers of several models.
    """
    found: list[Output] = []
    rows: dict[str, str] = {}
    for row in read_json_list(Path(path), _OUTPUTS, where=where):
        if "output_1" in row.fields:
            row.refuse("is an annotation, not a model's output")
        instruction = _instruction(row, rows)
        each = Output(instruction, row.text("output"), row.text("generator", empty=False), _dataset(row))
        if found and each.generator != found[0].generator:
            row.refuse(f"is of {each.generator} and earlier rows of {found[0].generator}; keep one model a file")
        found.append(each)
    return found


def write_outputs(path: str | Path, outputs: Iterable[Output]) -> None:
    """Writes a model_outputs.json whole or not at all, its folder made where it is missing."""
    _write(
        Path(path),
        [
            {
                "dataset": each.dataset,
                "instruction": each.instruction,
                "output": each.output,
                "generator": each.generator,
            }
            for each in outputs
        ],
    )


def same_instructions(
    baseline: Sequence[Output], outputs: Sequence[Output], *, of_baseline: str, of_outputs: str
) -> list[tuple[Output, Output]]:
    """Pairs of baseline and model output, in the order of the baseline.

    Args:
        of_baseline, of_outputs: where the two come from, for messages.

    Raises:
        InputError: the two answer different instructions.
    """
    answered = {each.instruction: each for each in outputs}
    asked = {each.instruction for each in baseline}
    missing = [each.instruction for each in baseline if each.instruction not in answered]
    further = [each.instruction for each in outputs if each.instruction not in asked]
    if missing or further:
        first = shown(missing[0] if missing else further[0])
        raise InputError(
            f"{of_outputs}: answers other instructions than the baseline {of_baseline}: {len(missing):,} of its "
            f"{len(baseline):,} are missing and {len(further):,} are not among them (the first is {first}); compare "
            "answers to the same instructions, letter for letter"
        )
    return [(each, answered[each.instruction]) for each in baseline]


def read_annotations(path: str | Path, *, where: str = "") -> list[Annotation]:
    """Reads an annotations.json in its order. A preference that is null or not a number is None.

    Raises:
        InputError: a broken or empty file, an instruction twice, several baselines, models or annotators, or a
            preference that is neither 0 nor from 1 to 2.
    """
    found: list[Annotation] = []
    rows: dict[str, str] = {}
    for row in read_json_list(Path(path), _ANNOTATIONS, where=where):
        instruction = _instruction(row, rows)
        annotator = row.value("annotator") if "annotator" in row.fields else None
        each = Annotation(
            instruction,
            row.text("output_1"),
            row.text("generator_1", empty=False),
            row.text("output_2"),
            row.text("generator_2", empty=False),
            annotator if isinstance(annotator, str) else "",
            _preference(row),
            _dataset(row),
            raw_completion=row.fields.get("raw_completion"),
        )
        for key in ("generator_1", "generator_2", "annotator"):
            if found and getattr(each, key) != getattr(found[0], key):
                row.refuse(
                    f"its `{key}` is {getattr(each, key)} and that of earlier rows {getattr(found[0], key)}; keep one "
                    "baseline, one model and one annotator a file"
                )
        found.append(each)
    return found


def write_annotations(path: str | Path, annotations: Iterable[Annotation]) -> None:
    """Writes an annotations.json whole or not at all, its folder made where it is missing."""
    _write(
        Path(path),
        [
            {
                "instruction": each.instruction,
                "output_1": each.output_1,
                "generator_1": each.generator_1,
                "dataset": each.dataset,
                "output_2": each.output_2,
                "generator_2": each.generator_2,
                "annotator": each.annotator,
                "preference": each.preference,
                "price_per_example": each.price,
                "time_per_example": None,
                "raw_completion": each.raw_completion,
            }
            for each in annotations
        ],
    )


def same_baseline(
    annotations: Sequence[Annotation], baseline: Sequence[Output], *, of_annotations: str, of_baseline: str
) -> None:
    """Checks that annotations compare with this baseline on its instructions.

    Raises:
        InputError: another generator, the two models swapped, or instructions the baseline does not have.
    """
    theirs, ours = annotations[0].generator_1, baseline[0].generator
    if theirs != ours:
        swapped = annotations[0].generator_2 == ours
        raise InputError(
            f"{of_annotations}: compares with {theirs} (`generator_1`), and the baseline {of_baseline} is {ours}; "
            + (
                "the two models are swapped: make `generator_1` and `output_1` the baseline's and turn each preference "
                "p into 3 - p"
                if swapped
                else "give annotations against the same baseline, or its model_outputs.json as `baseline`"
            )
        )
    asked = {each.instruction for each in baseline}
    further = [each.instruction for each in annotations if each.instruction not in asked]
    if further:
        raise InputError(
            f"{of_annotations}: {len(further):,} of its {len(annotations):,} instructions are not in the baseline "
            f"{of_baseline} (the first is {shown(further[0])}); give annotations of the same instructions"
        )


def _instruction(row: Row, rows: dict[str, str]) -> str:
    instruction = row.text("instruction", empty=False)
    if instruction in rows:
        row.refuse(
            f"the instruction {shown(instruction)} is there a second time (first in {rows[instruction]}); keep one of "
            "the two"
        )
    rows[instruction] = row.origin.rpartition(": ")[2]
    return instruction


def _dataset(row: Row) -> str:
    dataset = row.fields.get("dataset")
    return dataset if isinstance(dataset, str) and dataset else NO_DATASET


def _preference(row: Row) -> float | None:
    value = row.value("preference")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
        row.refuse(
            f"`preference` is {shown(value)} and must be from 1 (the baseline's answer) to 2 (the model's), 0 or 1.5 "
            "for a tie, or null"
        )
    return float(value)


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Escaped beyond ASCII: an endpoint can send half a surrogate pair, which UTF-8 cannot hold.
    write_atomic(path, json.dumps(list(rows), indent=2, allow_nan=False) + "\n")
