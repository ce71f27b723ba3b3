"""`preceptor demo`: the paper's first stage at pocket size, on a CPU, in minutes, with figures.

A Mistral-architecture student learns twelve kinds of short instructions from a shipped Mixtral-architecture teacher,
by the prediction loss, the attention loss and both, beside plain fine-tuning on the same noisy rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preceptor import __version__
from preceptor.errors import InputError
from preceptor.files import json_text, sha256_file, write_atomic
from preceptor.pocket.figures import draw_exact_match, draw_gradient_norms, draw_losses, read_metrics
from preceptor.pocket.side_by_side import Job, run_side_by_side, workers_for
from preceptor.pocket.study import CONTROL, FIRST_SEED, METHODS, NOISE, STUDENT, TEACHER, Size, write_study
from preceptor.pocket.summary import summarise, table

FULL_SEEDS = 5
SETTINGS_FILE = "settings.json"


def main(
    out: Path, full: bool, seeds: int | None, log: Callable[[str], None], size: Size | None = None
) -> dict[str, Any]:
    """Run the study into `out` and return its report.

    What is finished in `out` is kept, so an interrupted demo goes on where it was, and `full` reuses the seed of a demo
    that ran there before.

    Args:
        out: written to: `seed-N/` (data, recipe, runs), `results/seed-N.json`, `figures/*.png`, `report.json`.
        full: five seeds instead of one.
        seeds: how many seeds; None is 1, or 5 with `full`.
        log: takes one line of progress.
        size: how long students train; None is the study's own.

    Returns:
        `seconds`, `models` {name: {`general`: {`score`, `low`, `high`}, `tasks`, `kl_teacher`, `attention_kl`, ...}},
        `figures`, `seeds`, `settings` and `table`.

    Raises:
        InputError: `out` cannot be written, or holds a demo of other settings.
        RunFailed: a method failed; the message says which and how to go on.
    """
    began = time.monotonic()
    size = size or Size()
    settings = _settings(size)
    count = seeds if seeds is not None else FULL_SEEDS if full else 1
    chosen = [FIRST_SEED + i for i in range(count)]
    _claim(out, settings)
    jobs = []
    for seed in chosen:
        recipe = write_study(out / f"seed-{seed}", seed, size)
        jobs += [Job(seed, recipe, name, method.cost) for name, method in METHODS.items()]
        jobs.append(Job(seed, recipe, "teacher", 0.0))
        if count > 1:
            clean = write_study(_control(out, seed), seed, size, noise=0.0)
            jobs.append(Job(seed, clean, "sft", METHODS["sft"].cost))
    log(
        f"{len(METHODS)} methods on {size.rows:,} rows with {NOISE:.0%} label noise, seeds {chosen[0]}-{chosen[-1]}: "
        f"{len(jobs)} jobs, {workers_for(len(jobs))} at a time"
    )
    run_side_by_side(jobs, log)
    results = {seed: _results(out, seed) for seed in chosen}
    models = summarise(results)
    report: dict[str, Any] = {
        "preceptor": __version__,
        "seeds": chosen,
        "intervals": "Student's t over seeds" if count > 1 else "bootstrap over questions",
        "settings": settings,
        "models": models,
        "figures": [str(path.relative_to(out)) for path in _draw(out, chosen, models)],
        "seconds": round(time.monotonic() - began, 1),
    }
    write_atomic(out / "report.json", json_text(report))
    text = table(models)
    log(f"\n{text}\n\n{report['seconds']:.0f} s; figures and report.json are in {out}")
    return {**report, "table": text}


def _control(out: Path, seed: int) -> Path:
    return out / f"seed-{seed}-clean"


def _settings(size: Size) -> dict[str, Any]:
    """What the numbers depend on, beside the seeds."""
    return {
        "steps": size.steps,
        "rows_per_step": size.rows_per_step,
        "epochs": size.epochs,
        "learning_rates": {name: method.learning_rate for name, method in METHODS.items()},
        "noise": NOISE,
        "student": dict(STUDENT),
        "teacher_sha256": sha256_file(TEACHER / "model.safetensors"),
    }


def _claim(out: Path, settings: dict[str, Any]) -> None:
    path = out / SETTINGS_FILE
    try:
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            differing = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
            if differing:
                raise InputError(
                    f"demo: {out} holds a demo of other settings ({', '.join(differing)}); give another folder "
                    "with --out, or remove that one"
                )
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json_text(settings))
    except OSError as error:
        raise InputError(
            f"demo: {out} cannot be written ({error.strerror}); give a folder that can with --out"
        ) from error


def _results(out: Path, seed: int) -> dict[str, dict[str, Any]]:
    """One seed's scores, which are also kept as `results/seed-N.json`."""
    runs = out / f"seed-{seed}" / "runs"
    files = {"teacher": runs / "teacher.json", **{name: runs / name / name / "scores.json" for name in METHODS}}
    control = _control(out, seed) / "runs" / "sft" / "sft" / "scores.json"
    files |= {CONTROL: control} if control.exists() else {}
    scores = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}
    (out / "results").mkdir(exist_ok=True)
    write_atomic(out / "results" / f"seed-{seed}.json", json_text({"seed": seed, "models": scores}))
    return scores


def _draw(out: Path, seeds: list[int], models: dict[str, Any]) -> list[Path]:
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    curves = {
        name: [read_metrics(out / f"seed-{seed}" / "runs" / name / name / "metrics.jsonl") for seed in seeds]
        for name in METHODS
    }
    paths = [folder / name for name in ("losses.png", "gradient_norms.png", "exact_match.png")]
    draw_losses(curves, paths[0])
    draw_gradient_norms(curves, paths[1])
    draw_exact_match(models, paths[2])
    return paths
