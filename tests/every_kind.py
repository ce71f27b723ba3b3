"""A recipe with a stage of every kind, small enough to be run many times, and what its results are compared by."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from invariant import routed_recipes
from invariant.recipes import SHAPE
from judged import jsonl, prompt_rows, question_rows
from preceptor.training.metrics import TIMING

TRAINING = {**routed_recipes.TRAINING, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
LETTERS = """\
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/letters.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""
KINDS = {"init", "generate", "sft", "distill", "store", "compose", "merge", "evaluate"}


def document(folder: Path, runs: Path, endpoint: str | None = None, *, tasks: bool = False) -> dict[str, Any]:
    """The recipe as written, its data put into `folder`; with an `endpoint`, that judges, and answers MT-Bench."""
    if not (folder / "questions.jsonl").exists():
        routed_recipes.write_data(folder)
        jsonl(folder / "questions.jsonl", question_rows("writing"))
        jsonl(folder / "prompts.jsonl", prompt_rows())
        jsonl(folder / "letters.jsonl", [{"question": "tea", "choices": ["milk", "salt"], "answer": 0}] * 2)
        (folder / "tasks").mkdir()
        (folder / "tasks" / "letters.yaml").write_text(LETTERS.replace("FOLDER", str(folder)))
    tokenizer = {"kind": "characters", "train_on": ["shop", "general"], "vocab_size": 60}
    start = {"kind": "init", "config": SHAPE, "tokenizer": tokenizer, "chat_template": "default"}
    sft = {"kind": "sft", "rows": 8, "rows_per_step": 4, "max_length": 96, "training": TRAINING}
    scores: dict[str, Any] = {
        "kind": "evaluate",
        "models": {"kd": "stage:kd", "dae": "stage:dae"},
        "reference": "stage:kd",
        "on": ["shop", "general"],
        "rows": 2,
        "max_length": 96,
        "max_new_tokens": 4,
        "resamples": 100,
    }
    if endpoint is not None:
        judge = {"endpoint": endpoint, "model": "judge", "concurrency": 1, "retries": 0}
        files = {"questions": "questions.jsonl", "prompts": "prompts.jsonl"}
        scores["mt_bench"] = {**files, "judge": judge, "max_new_tokens": 4}
    if tasks:
        scores["tasks"] = {"names": ["letters"], "include": [str(folder / "tasks")]}
    return {
        "name": "r",
        "runs_dir": str(runs),
        "data": {
            "shop": {"path": str(folder / "shop.jsonl"), "holdout": 4, "role": "domain"},
            "general": {"path": str(folder / "general.jsonl"), "holdout": 2},
        },
        "stages": {
            "teacher": start,
            "kd": {**sft, "model": "stage:teacher", "data": "general"},
            "said": {
                "kind": "store",
                "teacher": "stage:kd",
                "student": "stage:teacher",
                "data": ["general", "shop"],
                "max_length": 96,
                "batch_size": 4,
            },
            "taught": {
                **sft,
                "kind": "distill",
                "student": "stage:teacher",
                "teacher": "stage:said",
                "data": "general",
                "objective": [{"kind": "logits"}],
            },
            "written": {"kind": "generate", "model": "stage:kd", "rows": 2, "max_new_tokens": 4},
            "mixed": {"kind": "compose", "experts": ["stage:kd", "stage:taught"], "router": "random"},
            "between": {"kind": "merge", "models": ["stage:kd", "stage:taught"], "alpha": 0.5},
            "expert": {**sft, "model": "stage:kd", "data": "shop", "lora": {"r": 2}},
            "dae": {**routed_recipes.DAE, "rows": 8, "training": TRAINING},
            "scores": scores,
        },
    }


def write(folder: Path, raw: dict[str, Any]) -> Path:
    """The recipe as a file (YAML takes JSON)."""
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(raw))
    return path


def outcome(run: Path) -> dict[str, Any]:
    """What two runs must share to the bit: weights, stores, rows and predictions; log lines and scores but for time.

    Reports, records of stages and answers carry times, or folders, and are left out.
    """
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if not path.is_file() or "checkpoints/" in name or name.startswith("report/"):
            continue
        if path.suffix == ".safetensors":  # by tensors: the notes in a header come in any order
            tensors = load_file(path)
            found[name] = {each: hashlib.sha256(tensors[each].tobytes()).hexdigest() for each in sorted(tensors)}
        elif path.name == "rows.jsonl" or "/predictions/" in name:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [
                {key: line[key] for key in line if key.removeprefix("eval_") not in TIMING} for line in lines
            ]
        elif path.name == "scores.json":
            found[name] = _without(json.loads(path.read_text()), {"seconds", "usage"})
    return found


def _without(value: Any, keys: set[str]) -> Any:
    """Without what took time, and what was paid now or before (`usage`: replies of an earlier attempt are cached)."""
    if isinstance(value, dict):
        return {key: _without(item, keys) for key, item in value.items() if key not in keys}
    return value
