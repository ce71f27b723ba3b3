"""Does a student that learns from a store come as close to its teacher as one that learns from the teacher itself?

    python benchmarks/stored_study.py --seeds 43 44
    PRECEPTOR_DATA=… python benchmarks/stored_study.py --study stories --steps 200
    PRECEPTOR_DATA=… python benchmarks/stored_study.py --study shop --run runs/shop --steps 250

`pocket`: the pocket study's first stage on predictions alone, measured on its clean test rows. Its teacher is nearly
certain of most tokens. `stories`: the 260K TinyStories model follows the 3.3M one on stories that the teacher wrote,
measured on others that it wrote; a real language model's distributions. `shop`: stage 1 of recipes/shop.yaml, on
predictions alone, with teacher and pre-trained student of a finished run of that recipe, measured on other rows.

Both students have one start and see the same rows in the same order: one with the live teacher, one from a store of
sampled tokens. Both are then measured against the live teacher, row by row; `ratio` is the stored student's KL over the
live one's, with a 95 % bootstrap interval over rows. Rows go to benchmarks/out/stored_STUDY.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import preceptor
from preceptor.data.collator import Collator
from preceptor.data.prepare import load_rows
from preceptor.evaluation.measure import measure
from preceptor.models.load import load_model
from preceptor.models.tokenizers import load_tokenizer
from preceptor.objective import Logits, Objective
from preceptor.pocket.study import TEACHER_SPEC, Size, write_study
from preceptor.recipe import ModelSpec, parse_recipe
from preceptor.signals import TokenBatch
from preceptor.teachers import ModelTeacher

REPOSITORY = Path(__file__).parents[1]
OUT = REPOSITORY / "benchmarks/out"


def pocket(folder: Path, seed: int, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe of an untrained `student` and the stage `live` that trains it, its data written; and the teacher."""
    size = Size(steps=steps)
    recipe = yaml.safe_load(write_study(folder, seed, size, ["kd_prediction"]).read_text())
    live = {**recipe["stages"]["kd_prediction"], "objective": [{"kind": "logits"}]}
    return {**recipe, "stages": {"student": recipe["stages"]["student"], "live": live}}, TEACHER_SPEC


def stories(folder: Path, seed: int, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `pocket`, the student a trained one; the teacher writes the rows first."""
    weights = Path(os.environ["PRECEPTOR_DATA"]) / "weights"
    teacher = {"path": str(weights / "tinystories-bitnet-3M-hf")}
    write = {"kind": "generate", "model": teacher, "rows": 750, "max_new_tokens": 100, "batch_size": 64}
    done = run({"name": "rows", "seed": seed, "stages": {"written": write}}, folder)
    rows = (Path(done["directory"]) / "written" / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "test.jsonl").write_text("".join(rows[:150]))
    (folder / "public.jsonl").write_text("".join(rows[150:]))
    live = {
        "kind": "distill",
        "student": str(weights / "stories260K-hf"),
        "teacher": teacher,
        "data": "public",
        "objective": [{"kind": "logits"}],
        "rows_per_step": 16,
        "max_length": 256,
        "training": {
            "max_steps": steps,
            "learning_rate": 1.5e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.05,
            "adam_beta2": 0.98,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 32,
            "save_strategy": "no",
            "use_cpu": True,
        },
    }
    data = {"public": {"path": "public.jsonl", "test": "test.jsonl"}}
    # Short stories are written twice.
    again = {"overlap": {"drop_from": "public"}}
    return {"name": f"stories-{seed}", "seed": seed, "data": data, **again, "stages": {"live": live}}, teacher


def shop(folder: Path, seed: int, steps: int, finished: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `pocket`: the general rows of the real shop study in its shares, 1,000 of them kept for measuring."""
    recipe = yaml.safe_load((REPOSITORY / "recipes/shop.yaml").read_text())
    drawn = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for name, count in (("t0", 7200), ("dolly", 900), ("alpaca", 900)):
        data = recipe["data"][name]
        path = Path(os.path.expandvars(data["path"]))
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            read = [json.loads(line) for line in file]
        tasks = data.get("where", {}).get("task")
        found = [{"messages": row["messages"]} for row in read if tasks is None or row["task"] in tasks]
        rows += [found[i] for i in drawn.permutation(len(found))[:count]]
    rows = [rows[i] for i in drawn.permutation(len(rows))]
    for name, part in (("test", rows[:1000]), ("public", rows[1000:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    teacher = {"path": str((finished / "teacher/model").resolve())}
    live = {
        **recipe["stages"]["kd"],
        "student": str((finished / "pretrained_small/model").resolve()),
        "teacher": teacher,
        "data": "public",
        "objective": [{"kind": "logits"}],
    }
    live["training"] = {**live["training"], "max_steps": steps, "save_strategy": "no"}
    data = {"public": {"path": "public.jsonl", "test": "test.jsonl"}}
    again = {"overlap": {"drop_from": "public"}}
    return {"name": f"shop-{seed}", "seed": seed, "data": data, **again, "stages": {"live": live}}, teacher


def run(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Runs a recipe in `folder`."""
    whole = {**recipe, "runs_dir": str(folder / "runs")}
    return preceptor.run(parse_recipe(whole, folder=folder), log=lambda line: print(line, file=sys.stderr, flush=True))


def study(name: str, folder: Path, seed: int, steps: int, draws: int, finished: Path | None) -> dict[str, Any]:
    """Runs one seed; returns KL per target of both students, their ratio with its interval, and what the store took."""
    if name == "shop":
        assert finished is not None
        recipe, teacher = shop(folder, seed, steps, finished)
    else:
        recipe, teacher = {"pocket": pocket, "stories": stories}[name](folder, seed, steps)
    live = recipe["stages"]["live"]
    live["training"]["logging_steps"] = 50
    store = {
        "kind": "store",
        "teacher": teacher,
        "student": live["student"],
        "data": "public",
        "max_length": live["max_length"],
        "batch_size": 64,
        "draws": draws,
    }
    stages = {**recipe["stages"], "written": store, "stored": {**live, "teacher": "stage:written"}}
    done = run({**recipe, "stages": stages}, folder)
    runs, test = Path(done["directory"]), folder / "test.jsonl"
    kl = {name: kl_per_row(runs / name / "model", ModelSpec(**teacher), test) for name in ("live", "stored")}
    result = {"seed": seed, **{f"kl_{name}": float(sums.sum() / counts.sum()) for name, (sums, counts) in kl.items()}}
    result["ratio"], result["low"], result["high"] = ratio(kl["stored"], kl["live"])
    written = done["stages"]["written"]
    kept = ("bytes_per_target", "distinct_tokens", "written_per_second", "read_per_second", "target_positions")
    seconds = {f"seconds_{name}": done["stages"][name]["seconds"] for name in ("live", "written", "stored")}
    return {**result, **{key: written[key] for key in kept}, **seconds}


def kl_per_row(student: Path, teacher: ModelSpec, test: Path) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the KL to the live teacher over each test row's targets, and how many targets each row has."""
    tokenizer = load_tokenizer(ModelSpec(path=str(student)))
    model = load_model(ModelSpec(path=str(student)), role="student")
    rows = load_rows(str(test), tokenizer, max_length=256, announce=lambda line: None)
    # Each row is a route of its own: sums are kept apart by route.
    named = [replace(row, own_route=str(i)) for i, row in enumerate(rows)]
    routes = [row.route for row in named]
    objective = Objective([Logits()], route_names=routes, vocabulary=len(tokenizer))
    live = ModelTeacher(load_model(teacher, role="teacher"))
    objective.prepare(model, live)
    collate = Collator(int(tokenizer.pad_token_id), route_names=routes)  # type: ignore[arg-type]
    batches = (TokenBatch.from_inputs(collate(named[i : i + 50])) for i in range(0, len(named), 50))
    found = measure(objective, model, batches, live)
    return found.sums_TK[0].numpy(), found.targets_K.numpy()


def ratio(
    ours: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray], resamples: int = 2000
) -> tuple[float, float, float]:
    """Ratio of the mean KL per target, and its 95 % bootstrap interval over rows, paired."""
    index = np.random.default_rng(0).integers(0, len(ours[0]), (resamples, len(ours[0])))
    drawn = ours[0][index].sum(1) / theirs[0][index].sum(1)  # the same rows, so the same targets
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(ours[0].sum() / theirs[0].sum()), float(low), float(high)


def main() -> None:
    """Run the seeds, print the table, write the rows."""
    parser = argparse.ArgumentParser(description="A student of a store against one of the live teacher.")
    parser.add_argument("--study", choices=("pocket", "stories", "shop"), default="pocket")
    parser.add_argument("--run", type=Path, help="study shop: the directory of a finished run of recipes/shop.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[43, 44])
    parser.add_argument(
        "--steps",
        type=int,
        default=500,
        help="optimiser steps of 64 rows, 16 stories or 32 rows of the shop (default 500)",
    )
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--threads", type=int, help="torch threads (default: one per core)")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if args.study == "shop" and args.run is None:
        parser.error("--study shop needs --run, the directory of a finished run of recipes/shop.yaml")
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = []
    for seed in args.seeds:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = study(args.study, Path(folder), seed, args.steps, args.draws, args.run)
        rows.append({**found, "study": args.study, "steps": args.steps})
        rows[-1]["seconds"] = round(time.monotonic() - begun, 1)
        print(json.dumps(rows[-1]), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"stored_{args.study}.json").write_text(json.dumps(rows, indent=1) + "\n")
    print("| seed | KL, live teacher | KL, stored | ratio (95 % interval) | bytes per target |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['seed']} | {row['kl_live']:.4f} | {row['kl_stored']:.4f} | {row['ratio']:.3f} "
            f"({row['low']:.3f}–{row['high']:.3f}) | {row['bytes_per_target']:.1f} |"
        )


if __name__ == "__main__":
    main()
