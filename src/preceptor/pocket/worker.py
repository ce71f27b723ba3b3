"""Runs stages of one seed in a process of its own: `python -m preceptor.pocket.worker RECIPE STAGE[,STAGE…]`.

Two such processes with one thread each finish 30–40 % sooner on two cores than one process with two threads, because
matrices of pocket size leave a second thread little to do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from preceptor.data.chat import EncodedRow, encode_rows
from preceptor.data.collator import Collator
from preceptor.data.rows import read_rows
from preceptor.errors import InputError, RunFailed
from preceptor.evaluation.measure import by_length, measure
from preceptor.models.load import load_model
from preceptor.models.tokenizers import load_tokenizer
from preceptor.objective import Attention, Logits, Objective
from preceptor.pocket.methods import DISTILLED, TEACHER_SPEC
from preceptor.recipe import DatasetSpec, ModelSpec, Recipe, load_recipe, models_of
from preceptor.recipe.base import stage_of
from preceptor.runs import run
from preceptor.signals import TokenBatch
from preceptor.system.files import json_text, write_atomic
from preceptor.teachers import ModelTeacher

Log = Callable[[str], None]
BATCH = 128


def stage_directory(recipe: Path, stage: str) -> Path:
    """Where the stage of a seed's recipe is run.

    Every stage has a run directory of its own, because a run directory is locked while in use.
    """
    return recipe.parent / "runs" / stage / stage


def run_stage(recipe_path: Path, stage: str, log: Log) -> None:
    """Run one stage whose models are there, or keep what is done.

    The untrained student is made anew in each run directory: its weights depend on the seed alone.
    """
    written = load_recipe(recipe_path)
    overrides = [f"runs_dir={json.dumps(str(recipe_path.parent / 'runs'))}", f"name={stage}"]
    recipe = load_recipe(recipe_path, [*overrides, *_found_beside(written, recipe_path, stage)])
    if "student" in recipe.stage_reads(stage):
        run(recipe, only="student", log=log)
    run(recipe, only=stage, log=log)
    if stage in (*DISTILLED, "sft_clean"):
        _keep_distance(recipe_path, stage)


def _found_beside(recipe: Recipe, path: Path, stage: str) -> list[str]:
    """Overrides that replace `stage:NAME` by the model which that stage left in its own run directory."""
    overrides = []
    for key, model in models_of(recipe.stages[stage]).items():
        source = stage_of(model.path)
        if source not in (None, "student"):
            folder = stage_directory(path, str(source)) / "model"
            overrides.append(f"stages.{stage}.{'.'.join(map(str, key))}={json.dumps(str(folder))}")
    return overrides


def _keep_distance(recipe_path: Path, stage: str) -> None:
    """Write how far a distilled student is from the teacher, once for each result of the stage."""
    directory = stage_directory(recipe_path, stage)
    identity = json.loads((directory / "stage.json").read_text(encoding="utf-8"))["identity"]
    path = directory / "distance.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["identity"] == identity:
        return
    spec = ModelSpec(path=str(directory / "model"))
    found = distance_to_teacher(
        load_model(spec, role="teacher"), load_tokenizer(spec), recipe_path.parent / "test.jsonl"
    )
    write_atomic(path, json_text({"identity": identity, **found}))


def distance_to_teacher(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, test: Path) -> dict[str, float]:
    """KL(teacher ‖ model) of next-token distributions and of attention rows, on the target positions of `test`."""
    rows = read_rows("test", DatasetSpec(path=str(test)), announce=lambda line: None)
    encoded = [row for row in encode_rows(rows, tokenizer, max_length=64) if isinstance(row, EncodedRow)]
    teacher = ModelTeacher(load_model(ModelSpec(**TEACHER_SPEC), role="teacher"))
    objective = Objective([Logits(), Attention()], route_names=("test",), vocabulary=len(tokenizer))
    objective.prepare(model, teacher)
    assert isinstance(tokenizer.pad_token_id, int)
    collator = Collator(tokenizer.pad_token_id, route_names=("test",))
    batches = (
        TokenBatch.from_inputs(collator([encoded[i] for i in chosen]))
        for chosen in by_length([len(row) for row in encoded], BATCH)
    )
    totals = measure(objective, model, batches, teacher).totals()
    return {"kl_teacher": totals["logits"], "attention_kl": totals["attention"]}


def main(argv: Sequence[str]) -> int:
    """Run one job; progress goes to standard output, one error sentence to standard error."""
    torch.set_num_threads(1)
    disable_progress_bar()

    def log(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    try:
        for stage in argv[1].split(","):
            run_stage(Path(argv[0]), stage, log)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (RunFailed, KeyboardInterrupt) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
