"""Run directories written by hand, as `preceptor run` leaves them: small enough to compute a report in one's head."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report_dicts import HOSTILE

Row = tuple[str, str, str, float]
"""Dataset, task, answer and score of one prediction."""


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_lines(path: Path, values: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def stage_record(name: str, kind: str, *, seed: int = 1, **more: Any) -> dict[str, Any]:
    """A stage.json."""
    given = more.pop("given", {"kind": kind, "rows": 8, "lora": None})
    return {
        "format": 1,
        "stage": name,
        "kind": kind,
        "given": given,
        "identity": f"{name} of {seed}",
        "spec": more.pop("spec", {"kind": kind, "rows": 8}),
        "seed": seed,
        "inputs": {},
        "results_version": 1,
        "results": more.pop("results", {}),
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:05:05+00:00",
        "seconds": 60.0,
        "versions": {"python": "3.11.7", "preceptor": "0.1.0"},
        "hardware": {"system": "Linux", "cpus": 2, "accelerators": []},
        **more,
    }


def training(run: Path, name: str, *, seed: int = 1, steps: int = 3, **more: Any) -> Path:
    """A finished distillation: at step s the loss is 10 − s, half of it logits."""
    data = {"shop": {"share": 1.0, "rows": 8, "tokens": 80, "targets": 16, "passes": 1.0}}
    write_json(
        run / name / "stage.json", stage_record(name, "distill", seed=seed, results={"steps": steps, "data": data})
    )
    lines = [{"step": s, "loss": 10.0 - s, "logits": (10.0 - s) / 2, "grad_norm": 1.0} for s in range(1, steps + 1)]
    write_lines(run / name / "metrics.jsonl", lines)
    return run / name


def interval(score: float, key: str = "score", half: float = 0.1) -> dict[str, float]:
    return {key: score, "low": score - half, "high": score + half}


def model_entry(general: float, domain: float, **more: Any) -> dict[str, Any]:
    """A model's part of scores.json: one task of each role, `letters` and `shelf`."""
    return {
        "general": {**interval(general), "tasks": 1, "rows": 4},
        "domain": {**interval(domain), "tasks": 1, "rows": 4},
        "kl_reference": interval(0.5, "value"),
        "kl_expert": interval(0.25, "value"),
        "agreement_reference": None,
        "agreement_expert": None,
        "over_reference": {"general": interval(general - 0.5, "value"), "domain": interval(domain - 0.25, "value")},
        "flips": {role: flips() for role in ("general", "domain")},
        "recovery": interval(0.75, "value"),
        "retention": interval(general / 0.5, "value"),
        "datasets": {
            "public": {**interval(general), "tasks": {"letters": interval(general)}},
            "shop": {**interval(domain), "tasks": {"shelf": interval(domain)}},
        },
        **more,
    }


def flips(forgotten: int = 1, gained: int = 2, rows: int = 4) -> dict[str, Any]:
    def part(count: int) -> dict[str, Any]:
        rate = count / rows
        return {"count": count, "rate": rate, "low": rate - 0.1, "high": rate + 0.1, "adjusted": rate}

    return {"rows": rows, "tasks": 1, "chance": 0.0, "forgotten": part(forgotten), "gained": part(gained)}


def scores_file(models: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A scores.json; the first model is the reference, the second the expert."""
    names = list(models)
    facts = {"part": "test", "rows": 4, "targets": 8, "dropped": {}, "cut": 0}

    def task(name: str) -> dict[str, Any]:
        return {name: {"metric": "exact", "rows": 4, "majority": 0.5, "chance": None}}

    return {
        "format": 1,
        "seed": 1,
        "resamples": 1000,
        "confidence": 0.95,
        "reference": names[0] if names else None,
        "expert": names[1] if len(names) > 1 else None,
        "datasets": {
            "public": {"role": "general", **facts, "tasks": task("letters")},
            "shop": {"role": "domain", **facts, "tasks": task("shelf")},
        },
        "models": dict(models),
        "warnings": [],
        "settings": {"max_length": 64, "max_new_tokens": 8},
        **more,
    }


def predictions(scores: Sequence[float], answers: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Eight rows: four of `public`, then four of `shop`. The right answer to row n is `right n`."""
    rows = []
    for number, score in enumerate(scores):
        dataset, role, task = ("public", "general", "letters") if number < 4 else ("shop", "domain", "shelf")
        rows.append(
            {
                "id": f"id {number}",
                "dataset": dataset,
                "row": number % 4,
                "role": role,
                "task": task,
                "metric": "exact",
                "prompt": f"question {number}",
                "expected": f"right {number}",
                "answer": answers[number] if answers else f"{'right' if score else 'wrong'} {number}",
                "score": score,
                "choices": None,
                "log_likelihoods": None,
                "targets": 2,
                "nll": 0.1,
                "kl": 0.1,
                "agree": 2,
            }
        )
    return rows


def evaluation(
    run: Path,
    models: Mapping[str, Any],
    *,
    name: str = "scores",
    seed: int = 1,
    rows: Mapping[str, Sequence[float]] | None = None,
    **more: Any,
) -> Path:
    """A finished evaluate stage of models that stages of the same names made."""
    given = {
        "kind": "evaluate",
        "models": {each: {"path": f"stage:{each}", "adapter": None} for each in models},
        "on": ["public", "shop"],
    }
    kept = ("general", "domain", "recovery", "retention", "kl_reference", "kl_expert")
    results = {
        "models": {each: {key: entry[key] for key in kept} for each, entry in models.items()},
        "warnings": [],
    }
    record = stage_record(name, "evaluate", seed=seed, given=given, results=results)
    write_json(run / name / "stage.json", record)
    write_json(run / name / "scores.json", scores_file(models, **more))
    for each, values in (rows or {}).items():
        write_lines(run / name / "predictions" / f"{each}.jsonl", predictions(values))
    return run / name


def recipe_text(run: str = "toy", seed: int = 1, stages: Sequence[str] = ("kd", "dae", "scores"), **more: Any) -> str:
    value = {
        "name": run,
        "seed": seed,
        "data": {"shop": {"path": "shop.jsonl"}},
        "stages": {stage: {"kind": "evaluate" if stage == "scores" else "distill", **more} for stage in stages},
    }
    return f"# From study/recipe.yaml, overrides applied; relative paths start in study.\n{json.dumps(value)}\n"


MODELS = {"kd": model_entry(0.5, 0.25), "expert": model_entry(0.25, 1.0), "dae": model_entry(0.75, 0.5)}
"""kd is the reference, expert the expert; dae is better than kd in both."""
ROWS = {
    "kd": [1, 1, 0, 0, 1, 0, 0, 0],
    "expert": [1, 0, 0, 0, 1, 1, 1, 1],
    "dae": [1, 1, 1, 0, 0, 1, 0, 0],
}


def whole_run(folder: Path, *, seed: int = 1, models: Mapping[str, Any] | None = None, **more: Any) -> Path:
    """A run of two distillations and an evaluation, nothing missing."""
    training(folder, "kd", seed=seed)
    training(folder, "dae", seed=seed)
    chosen = MODELS if models is None else models
    evaluation(folder, chosen, seed=seed, rows={name: ROWS[name] for name in chosen if name in ROWS}, **more)
    (folder / "recipe.yaml").write_text(recipe_text(folder.name, seed), encoding="utf-8")
    return folder


def hostile_run(folder: Path) -> Path:
    """Names of models, tasks and stages, answers, warnings and the recipe are all markup and escape codes."""
    owned = [*HOSTILE, "javascript:alert(1)", "x' onclick='y", "\x9b2J\x07", "url(javascript:x)", "&lt;script&gt;"]
    run = whole_run(folder / "\x1b[31m<b>")
    scores = run / "scores" / "scores.json"
    value = json.loads(scores.read_text())
    value["models"] = {owned[n]: entry for n, entry in enumerate(value["models"].values())}
    value["warnings"] = owned
    value |= {"reference": owned[0], "expert": None}
    predictions = run / "scores" / "predictions"
    for path in list(predictions.iterdir()):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        changed = [
            {**row, "answer": owned[n % 8], "prompt": owned[n % 5], "task": row["task"]} for n, row in enumerate(rows)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in changed))
    scores.write_text(json.dumps(value))
    stage = json.loads((run / "kd" / "stage.json").read_text())
    stage |= {"stage": owned[1], "versions": {owned[2]: owned[4]}, "given": {owned[5]: owned[0]}, "kind": "distill"}
    (run / "kd" / "stage.json").write_text(json.dumps(stage))
    (run / "recipe.yaml").write_text("# " + " ".join(owned[:2]) + "\nstages: {x: {}}\n")
    (run / "<img src=x onerror=alert(1)>").mkdir()
    return run
