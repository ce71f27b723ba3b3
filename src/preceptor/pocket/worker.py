"""Trains and scores one method of one seed, in a process of its own: `python -m preceptor.pocket.worker RECIPE METHOD`.

Two such processes with one thread each finish 30–40 % sooner on two cores than one process with two threads, because
matrices of pocket size leave a second thread little to do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from preceptor.data.chat import EncodedRow, encode_rows
from preceptor.data.collator import Collator
from preceptor.data.rows import read_rows
from preceptor.errors import InputError, RunFailed
from preceptor.evaluation.exact_match import exact_match, questions_of
from preceptor.evaluation.measure import by_length, measure
from preceptor.files import json_text, sha256_file, write_atomic
from preceptor.models.load import load_model
from preceptor.models.tokenizers import load_tokenizer
from preceptor.objective import Attention, Logits, Objective
from preceptor.pocket.study import TEACHER, TEACHER_SPEC
from preceptor.recipe import DatasetSpec, ModelSpec, load_recipe
from preceptor.runs import run
from preceptor.signals import TokenBatch
from preceptor.teachers import ModelTeacher

Log = Callable[[str], None]
BATCH = 128


def score_model(model_spec: ModelSpec, test: Path) -> dict[str, Any]:
    """Exact match per task on the rows of `test`, and the distance to the teacher on their answers.

    Returns:
        `score` (mean over tasks), `tasks` {kind: share}, `correct` (one "0" or "1" per question, in order), `kinds`
        (the task of each question), `kl_teacher` and `attention_kl` (nats per target position; the attention's mean
        over heads and layers).
    """
    tokenizer = load_tokenizer(model_spec)
    model = load_model(model_spec, role="teacher")
    rows = [json.loads(line) for line in test.read_text(encoding="utf-8").splitlines()]
    longest = max(len(row["messages"][-1]["content"]) for row in rows)
    found = exact_match(model, tokenizer, questions_of(rows), max_new_tokens=longest + 2, batch_size=BATCH)
    return {
        "score": found.score,
        "tasks": found.by_task,
        "correct": "".join(str(int(right)) for right in found.correct),
        "kinds": [question.task for question in found.questions],
        **distance_to_teacher(model, tokenizer, test),
    }


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


def run_method(recipe_path: Path, method: str, log: Log) -> dict[str, Any]:
    """Train `method` from its seed's untrained student, or keep what is done, and score it.

    Every method has a run directory of its own, because a run directory is locked while in use. Initial weights
    depend on the seed alone, so all of them start from the same student.
    """
    runs = recipe_path.parent / "runs"
    recipe = load_recipe(recipe_path, [f"runs_dir={json.dumps(str(runs))}", f"name={method}"])
    run(recipe, only="student", log=log)
    stage = run(recipe, only=method, log=log)["stages"][method]
    directory = runs / method / method
    identity = json.loads((directory / "stage.json").read_text(encoding="utf-8"))["identity"]
    scores = _kept(directory / "scores.json", identity)
    if scores is None:
        scores = score_model(ModelSpec(path=str(directory / "model")), recipe_path.parent / "test.jsonl")
        scores |= {"identity": identity, "seconds": stage["seconds"], "steps": stage["steps"]}
        write_atomic(directory / "scores.json", json_text(scores))
    log(f"{method}: exact match {scores['score']:.3f}, KL to the teacher {scores['kl_teacher']:.3f}")
    return dict(scores)


def score_teacher(recipe_path: Path, log: Log) -> dict[str, Any]:
    """The teacher's own scores on one seed's test rows: what the students could reach."""
    path = recipe_path.parent / "runs" / "teacher.json"
    identity = sha256_file(TEACHER / "model.safetensors")
    scores = _kept(path, identity)
    if scores is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        scores = score_model(ModelSpec(**TEACHER_SPEC), recipe_path.parent / "test.jsonl")
        scores |= {"identity": identity}
        write_atomic(path, json_text(scores))
    log(f"teacher: exact match {scores['score']:.3f}")
    return dict(scores)


def _kept(path: Path, identity: str) -> Mapping[str, Any] | None:
    """Scores of an earlier run, if they are of the same stage."""
    if not path.exists():
        return None
    scores: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return scores if scores["identity"] == identity else None


def main(argv: Sequence[str]) -> int:
    """Run one job; progress goes to standard output, one error sentence to standard error."""
    recipe, job = Path(argv[0]), argv[1]
    torch.set_num_threads(1)
    disable_progress_bar()

    def log(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    try:
        if job == "teacher":
            score_teacher(recipe, log)
        else:
            run_method(recipe, job, log)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (RunFailed, KeyboardInterrupt) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
