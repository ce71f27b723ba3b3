"""`preceptor demo`: the whole paper at pocket size, on a CPU, in minutes, with figures.

A Mistral-architecture student learns twelve kinds of short instructions from a shipped Mixtral-architecture teacher, by
the prediction loss, the attention loss and both, beside plain fine-tuning on the same noisy rows. The best of them then
learns a fictional shop from an expert without forgetting the rest, beside what a user would do instead.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preceptor.errors import InputError, RunFailed
from preceptor.pocket.methods import APART, EXPERT, FEW_ROWS, METHODS, REFERENCE, TEACHER, Part
from preceptor.pocket.side_by_side import Job, run_side_by_side, workers_for
from preceptor.pocket.study import FIRST_SEED, NOISE, SCORES, STUDENT, Size, write_study
from preceptor.pocket.tables import TITLES, alignment_table, distillation_table
from preceptor.pocket.worker import stage_directory
from preceptor.recipe import load_recipe
from preceptor.report import RunSource, write_report
from preceptor.system.disk import full_disk
from preceptor.system.files import json_text, sha256_file, write_atomic

FULL_SEEDS = 5
SETTINGS_FILE = "settings.json"
DISTANCES = ("kl_teacher", "attention_kl")
DEMO: tuple[Part, ...] = ("distil", "align")
FULL: tuple[Part, ...] = (*DEMO, "sweep", "clean", "few", "pair")


def main(
    out: Path, full: bool, seeds: int | None, log: Callable[[str], None], size: Size | None = None
) -> dict[str, Any]:
    """Run the study into `out` and return its report.

    What is finished in `out` is kept, so an interrupted demo goes on where it was, and `full` reuses the seed of a demo
    that ran there before.

    Args:
        out: written to: `seed-N/` (data, recipe, runs), `results/seed-N.json`, and the report: `report.html`,
            `report.json`, `figures/`.
        full: five seeds instead of one, and the controls and sweeps beside the demo's methods.
        seeds: how many seeds; None is 1, or 5 with `full`.
        log: takes one line of progress.
        size: how long students train; None is the study's own.

    Returns:
        The content of report.json (docs/report.md) with `seconds` this call took, `seeds`, `settings` and `table`.

    Raises:
        InputError: `out` cannot be written, or holds a demo of other settings.
        RunFailed: a stage failed; the message says which and how to go on.
    """
    began = time.monotonic()
    size = size or Size()
    settings = _settings(size)
    count = seeds if seeds is not None else FULL_SEEDS if full else 1
    chosen = [FIRST_SEED + i for i in range(count)]
    names = [name for name, method in METHODS.items() if method.part in (FULL if full else DEMO)]
    _claim(out, settings)
    jobs = [job for seed in chosen for job in _jobs(out, seed, size, names)]
    log(
        f"{len(names)} models from {size.rows:,} rows with {NOISE:.0%} label noise and {size.shop_rows:,} of the shop, "
        f"seeds {chosen[0]}-{chosen[-1]}: {len(jobs)} jobs, {workers_for(len(jobs))} at a time"
    )
    run_side_by_side(jobs, log)
    results = {seed: _results(out, seed, names) for seed in chosen}
    report = write_report(
        [_source(out, seed, names, results[seed]) for seed in chosen],
        out,
        title="The pocket study",
        log=log,
    )
    seconds = round(time.monotonic() - began, 1)
    text = f"{distillation_table(report['models'])}\n\n{alignment_table(report['models'])}"
    log(f"\n{text}\n\n{seconds:.0f} s; open {out / 'report.html'}")
    return {**report, "seconds": seconds, "seeds": chosen, "settings": settings, "table": text}


def _jobs(out: Path, seed: int, size: Size, names: list[str]) -> list[Job]:
    """One seed's stages, each after those whose models it reads, and its scores after all."""
    apart = [name for name in names if METHODS[name].part in APART]
    together = [name for name in names if name not in apart]
    elsewhere = {name: _stage_directory(out, seed, name) / "model" for name in apart}
    recipe = write_study(_folder(out, seed), seed, size, together, elsewhere=elsewhere)
    stages = load_recipe(recipe)
    merged = [name for name in together if METHODS[name].stage["kind"] == "merge"]
    jobs = [_job(seed, recipe, name, stages.stage_reads(name)) for name in together if name not in merged]
    # A merge takes a moment and a process some seconds to start: all of them share one.
    jobs.append(Job(f"{seed}/merges", recipe, ",".join(merged), 0.1, (f"{seed}/{REFERENCE}", f"{seed}/{EXPERT}")))
    made = {name: stage_directory(recipe, name) / "model" for name in (REFERENCE, EXPERT)}
    for part in APART:
        own = [name for name in apart if METHODS[name].part == part]
        if own:
            noise, rows = (0.0, None) if part == "clean" else (NOISE, FEW_ROWS)
            other = write_study(
                _folder(out, seed, part), seed, size, own, noise=noise, public_rows=rows, elsewhere=made
            )
            jobs += [_job(seed, other, name, [] if name == "sft_clean" else [REFERENCE, EXPERT]) for name in own]
    # Scores come last, whatever else there is.
    phase = max(job.phase for job in jobs)
    scores = Job(f"{seed}/{SCORES}", recipe, SCORES, 0.5, tuple(job.name for job in jobs), phase)
    return [*jobs, scores]


def _job(seed: int, recipe: Path, name: str, reads: list[str]) -> Job:
    """The demo's own stages of all seeds come first, then the controls, then the 2x student."""
    part = METHODS[name].part
    phase = 0 if part in DEMO else FULL.index(part)
    after = tuple(f"{seed}/{each}" for each in reads if each != "student")
    return Job(f"{seed}/{name}", recipe, name, METHODS[name].cost, after, phase)


def _folder(out: Path, seed: int, part: Part | None = None) -> Path:
    """Where a seed's recipe and data are; some parts have public rows of their own."""
    return out / (f"seed-{seed}-{part}" if part in APART else f"seed-{seed}")


def _settings(size: Size) -> dict[str, Any]:
    """What the numbers depend on, beside the seeds."""
    return {
        "steps": size.steps,
        "rows_per_step": size.rows_per_step,
        "epochs": size.epochs,
        "shop_rows": size.shop_rows,
        "expert_steps": size.expert_steps,
        "align_steps": size.align_steps,
        "learning_rates": {name: method.learning_rate for name, method in METHODS.items() if method.learning_rate},
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
        if (full := full_disk(error, out)) is not None:
            raise RunFailed(f"demo: {full}; make room, and run the same command again") from error
        raise InputError(
            f"demo: {out} cannot be written ({error.strerror}); give a folder that can with --out"
        ) from error


def _stage_directory(out: Path, seed: int, name: str) -> Path:
    part = METHODS[name].part if name in METHODS else None
    return stage_directory(_folder(out, seed, part) / "recipe.yaml", name)


def _results(out: Path, seed: int, names: list[str]) -> dict[str, Any]:
    """One seed's scores and distances to the teacher, which are also kept as `results/seed-N.json`."""
    distances = {
        name: _read(path) for name in names if (path := _stage_directory(out, seed, name) / "distance.json").exists()
    }
    scores = _read(_stage_directory(out, seed, SCORES) / "scores.json")
    result = {"seed": seed, "scores": scores, "distances": distances}
    (out / "results").mkdir(exist_ok=True)
    write_atomic(out / "results" / f"seed-{seed}.json", json_text(result))
    return result


def _source(out: Path, seed: int, names: list[str], result: dict[str, Any]) -> RunSource:
    """One seed as one run of the report, though its stages were run in folders of their own."""
    return RunSource(
        f"seed {seed}",
        tuple(_stage_directory(out, seed, name) for name in (*names, SCORES)),
        seed,
        titles=TITLES,
        measured={name: {key: each[key] for key in DISTANCES} for name, each in result["distances"].items()},
        recipe=_folder(out, seed) / "recipe.yaml",
    )


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
