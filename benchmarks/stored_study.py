"""Does a student that learns from a store come as close to its teacher as one that learns from the teacher itself?

    python benchmarks/stored_study.py --seeds 43 44

The pocket study's first stage on predictions alone, from one start on the same rows in the same order: once with the
live teacher, once from a store of sampled tokens. Both students are then measured against the live teacher, row by row
on the study's clean test rows; `ratio` is the stored student's KL over the live one's, with a 95 % bootstrap interval
over rows. Rows go to benchmarks/out/stored_study.json.
"""

from __future__ import annotations

import argparse
import json
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

OUT = Path(__file__).parent / "out"


def study(folder: Path, seed: int, size: Size, draws: int) -> dict[str, Any]:
    """Runs one seed; returns KL per target of both students, their ratio with its interval, and what the store took."""
    recipe = yaml.safe_load(write_study(folder, seed, size, ["kd_prediction"]).read_text())
    live = {**recipe["stages"]["kd_prediction"], "objective": [{"kind": "logits"}]}
    live["training"]["logging_steps"] = 50
    store = {
        "kind": "store",
        "teacher": TEACHER_SPEC,
        "student": "stage:student",
        "data": "public",
        "max_length": 64,
        "batch_size": 128,
        "draws": draws,
    }
    stages = {
        "student": recipe["stages"]["student"],
        "live": live,
        "written": store,
        "stored": {**live, "teacher": "stage:written"},
    }
    whole = {**recipe, "stages": stages, "runs_dir": str(folder / "runs")}
    done = preceptor.run(parse_recipe(whole, folder=folder), log=lambda line: print(line, file=sys.stderr, flush=True))
    runs = Path(done["directory"])
    kl = {name: kl_per_row(runs / name / "model", folder / "test.jsonl") for name in ("live", "stored")}
    result = {"seed": seed, **{f"kl_{name}": float(sums.sum() / counts.sum()) for name, (sums, counts) in kl.items()}}
    result["ratio"], result["low"], result["high"] = ratio(kl["stored"], kl["live"])
    written = done["stages"]["written"]
    kept = ("bytes_per_target", "distinct_tokens", "written_per_second", "read_per_second", "target_positions")
    seconds = {f"seconds_{name}": done["stages"][name]["seconds"] for name in ("live", "written", "stored")}
    return {**result, **{key: written[key] for key in kept}, **seconds}


def kl_per_row(student: Path, test: Path) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the KL to the live teacher over each test row's targets, and how many targets each row has."""
    tokenizer = load_tokenizer(ModelSpec(path=str(student)))
    model = load_model(ModelSpec(path=str(student)), role="student")
    rows = load_rows(str(test), tokenizer, max_length=64, announce=lambda line: None)
    # Each row is a route of its own: sums are kept apart by route.
    named = [replace(row, own_route=str(i)) for i, row in enumerate(rows)]
    routes = [row.route for row in named]
    objective = Objective([Logits()], route_names=routes, vocabulary=len(tokenizer))
    teacher = ModelTeacher(load_model(ModelSpec(**TEACHER_SPEC), role="teacher"))
    objective.prepare(model, teacher)
    collate = Collator(int(tokenizer.pad_token_id), route_names=routes)  # type: ignore[arg-type]
    batches = (TokenBatch.from_inputs(collate(named[i : i + 96])) for i in range(0, len(named), 96))
    found = measure(objective, model, batches, teacher)
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
    parser = argparse.ArgumentParser(description="Stored against live teacher on the pocket study.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[43, 44])
    parser.add_argument("--steps", type=int, default=500, help="optimiser steps of 64 rows (default 500)")
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--threads", type=int, help="torch threads (default: one per core)")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = []
    for seed in args.seeds:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            rows.append({**study(Path(folder), seed, Size(steps=args.steps), args.draws), "steps": args.steps})
        rows[-1]["seconds"] = round(time.monotonic() - begun, 1)
        print(json.dumps(rows[-1]), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "stored_study.json").write_text(json.dumps(rows, indent=1) + "\n")
    print("| seed | KL, live teacher | KL, stored | ratio (95 % interval) | bytes per target |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['seed']} | {row['kl_live']:.4f} | {row['kl_stored']:.4f} | {row['ratio']:.3f} "
            f"({row['low']:.3f}–{row['high']:.3f}) | {row['bytes_per_target']:.1f} |"
        )


if __name__ == "__main__":
    main()
