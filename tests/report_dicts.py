"""Contents of a report.json for tests of the page and its figures: rich, poor, and hostile."""

from __future__ import annotations

import random
from typing import Any

CATEGORIES = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]
HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "{{ 7 * 7 }}{% raw %}",
    "\u2028\u2029\u202e\x00\x1b[31m\ud800",
    "]]> --> <!-- <svg onload=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "$\\frac{1}{0}$ _underscore",
    "</title></style><h1>owned</h1>",
)


def _interval(value: float, half: float = 0.03, key: str = "score") -> dict[str, float]:
    return {key: value, "low": max(0.0, value - half), "high": value + half}


def _flips(forgotten: float, gained: float) -> dict[str, Any]:
    def side(rate: float) -> dict[str, float]:
        low, high = max(0.0, rate - 0.02), rate + 0.02
        return {"count": round(480 * rate), "rate": rate, "low": low, "high": high, "adjusted": 0.8 * rate}

    return {"rows": 480, "tasks": 12, "chance": 0.01, "forgotten": side(forgotten), "gained": side(gained)}


def _mt_bench(mean: float) -> dict[str, Any]:
    return {
        "source": "ours",
        "judge": "judge-1",
        "score": _interval(mean, 0.4),
        "turns": {"1": _interval(mean + 0.2, 0.5), "2": _interval(mean - 0.2, 0.5)},
        "categories": {
            name: {**_interval(mean + place / 10, 0.9), "rows": 20} for place, name in enumerate(CATEGORIES)
        },
        "rows": 158,
        "failed": 2,
        "missing": 0,
    }


def _alpaca_eval(rate: float) -> dict[str, Any]:
    return {
        "source": "ours",
        "judge": "judge-1",
        "win_rate": rate,
        "low": rate - 2,
        "high": rate + 2,
        "standard_error": 1.0,
        "wins": 700,
        "losses": 100,
        "ties": 5,
        "rows": 805,
        "failed": 1,
        "missing": 0,
        "mean_length": 1400.5,
        "baseline_mean_length": 431.2,
    }


def model(
    title: str, kind: str, general: float, domain: float, tasks: dict[str, Any], **changes: Any
) -> dict[str, Any]:
    """One entry of `models` with every field."""
    return {
        "title": title,
        "run": "first",
        "kind": kind,
        "seeds": 1,
        "source": None,
        "pareto": False,
        "seconds": 60.0,
        "general": _interval(general),
        "domain": _interval(domain),
        "recovery": _interval(domain, key="value"),
        "retention": _interval(general / 0.8, key="value"),
        "kl_reference": _interval(0.1, key="value"),
        "kl_expert": _interval(0.2, key="value"),
        "flips": {"general": _flips(0.05, 0.03), "domain": _flips(0.0, domain)},
        "tasks": tasks,
        "mt_bench": None,
        "alpaca_eval": None,
        "suites": {},
        **changes,
    }


def _curve(run: str, seed: int, stage: str, kind: str, series: dict[str, float], points: int = 40) -> dict[str, Any]:
    draws = random.Random(f"{run}{stage}")
    found = {
        key: [start * 0.93**step * draws.uniform(0.9, 1.1) for step in range(points)] for key, start in series.items()
    }
    return {
        "run": run,
        "stage": stage,
        "title": stage,
        "kind": kind,
        "seed": seed,
        "step": [10 * (step + 1) for step in range(points)],
        "series": {
            **found,
            "loss": found[next(iter(found))],
            "grad_norm": [draws.uniform(0.5, 3) for _ in range(points)],
            "learning_rate": [1e-3] * points,
            "tokens_per_second": [draws.uniform(6000, 8000) for _ in range(points)],
            "targets_per_second": [draws.uniform(600, 800) for _ in range(points)],
            "peak_memory_mb": [730.0 + step / 10 for step in range(points)],
            "tokens": [12_000] * points,
        },
    }


def _stage(name: str, kind: str, weights: dict[str, float]) -> dict[str, Any]:
    settings: dict[str, Any] = {"rows": 16000, "rows_per_step": 64, "packing": False, "training.learning_rate": 0.003}
    for place, (term, weight) in enumerate(weights.items()):
        settings |= {f"objective.{place}.kind": term, f"objective.{place}.weight": weight}
    return {
        "name": name,
        "kind": kind,
        "status": "done",
        "seconds": 93.0,
        "settings": settings,
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:05:38+00:00",
        "versions": {"python": "3.11", "torch": "2.13"},
        "hardware": {"cpus": 2, "accelerators": []},
        "results": {"steps": 400, "parameters": 484_128, "trainable_parameters": 484_128, "peak_memory_mb": 731.5},
        "data": {"public": {"share": 1.0, "rows": 16000, "tokens": 325_023, "targets": 74_956, "passes": 1.0}},
    }


def _runs(seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    weights = {
        "kd_prediction": {"logits": 1.0, "attention": 0.0},
        "kd_attention": {"logits": 0.0, "attention": 1.0},
        "kd_both": {"logits": 1.0, "attention": 1.0},
        "dae": {"logits": 1.0},
    }
    return [
        {
            "id": f"run-{seed}",
            "path": f"runs/run-{seed}",
            "seed": seed,
            "problems": [],
            "recipe": "name: shop\nstages:\n  kd: {kind: distill}\n",
            "stages": [_stage(name, "distill", terms) for name, terms in weights.items()],
        }
        for seed in seeds
    ]


def _curves(seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    both = {"logits": 3.5, "attention": 1.8}
    routed = {**both, "logits/public": 0.1, "logits/shop": 6.0}
    return [
        _curve(f"run-{seed}", seed, stage, "distill", routed if stage == "dae" else both)
        for seed in seeds
        for stage in ("kd_prediction", "kd_attention", "kd_both", "dae")
    ]


def example(
    kind: str, row: int, prompt: str, answers: dict[str, tuple[str, float]], task: str = "task 0"
) -> dict[str, Any]:
    """One entry of `examples`; `answers` {model: (answer, score)}, the reference first."""
    return {
        "kind": kind,
        "dataset": "public",
        "row": row,
        "task": task,
        "metric": "exact",
        "role": "general",
        "prompt": prompt,
        "expected": "yes",
        "answers": [{"model": name, "answer": text, "score": score} for name, (text, score) in answers.items()],
    }


def rich(models: int = 6, tasks: int = 5, examples: int = 30, name: str = "model {}") -> dict[str, Any]:
    """Everything a report can have. Model `{}` of `name` is its number; numbers 0 and 1 are reference and expert."""
    draws = random.Random(0)
    facts = {f"task {n}": {"metric": "exact", "rows": 40, "majority": 0.1, "chance": None} for n in range(tasks)}
    entries: dict[str, Any] = {}
    for n in range(models):
        kind = {0: "reference", 1: "expert"}.get(n, "model")
        general, domain = draws.uniform(0.2, 0.9), draws.uniform(0.1, 0.95)
        scored = {
            task: {**_interval(draws.uniform(0.1, 0.9), 0.1), "role": "general", "dataset": "public", "metric": "exact"}
            for task in facts
        }
        entries[f"m{n}"] = model(
            name.format(n), kind, general, domain, scored, pareto=n in (1, 2), mt_bench=_mt_bench(5 + n / 10),
            alpaca_eval=_alpaca_eval(60 + n), suites=_suites(n), kl_teacher=0.09, seeds=2,
        )  # fmt: skip
    empty = dict.fromkeys(("general", "domain", "recovery", "retention", "kl_reference", "kl_expert", "flips"))
    judged = {**_mt_bench(7.58), "score": {"score": 7.58, "low": None, "high": None}, "turns": {"1": None, "2": None}}
    entries["published/Flip"] = model("Flip-7B", "published", 0, 0, {}) | {
        **empty,
        "seconds": None,
        "seeds": 0,
        "run": None,
        "source": "arXiv 2406.19112",
        "mt_bench": {**judged, "source": "published", "judge": None, "categories": {}, "rows": None, "failed": None},
    }
    keys = list(entries)
    shown = [
        example(
            ("forgotten", "gained")[row % 2],
            row,
            f"Question number {row}?",
            {"m0": ("yes", 1.0 - row % 2), keys[1]: ("no", float(row % 2)), keys[2]: ("yes", 1.0)},
            f"task {row % tasks}",
        )
        for row in range(examples)
    ]
    return {
        "format": 1,
        "preceptor": "0.1.0",
        "title": "A rich report",
        "seconds": 494.8,
        "runs": _runs((43, 44)),
        "models": entries,
        "curves": _curves((43, 44)),
        "examples": shown,
        "datasets": {"public": {"role": "general", "part": "test", "rows": 480, "tasks": facts}},
        "examples_total": {"forgotten": 413, "gained": 535},
        "published": [{"model": "published/Flip", "source": "arXiv 2406.19112"}],
        "mt_bench": {"judge": "judge-1", "questions": 80, "categories": CATEGORIES, "usage": {"requests": 640}},
        "alpaca_eval": {"judge": "judge-1", "baseline": "base", "instructions": 805, "usage": None},
        "tasks": {"harness": "lm-eval 0.4.13"},
        "differences": [],
        "warnings": [f"warning {n}" for n in range(15)],
        "figures": [],
    }


def _suites(n: int) -> dict[str, Any]:
    return {
        "arc": {"metric": "acc", "value": 0.4 + n / 100, "stderr": 0.01, "rows": 2376, "higher_is_better": True},
        "ppl": {"metric": "perplexity", "value": 14.0 + n, "stderr": None, "rows": 62, "higher_is_better": False},
    }


def poor() -> dict[str, Any]:
    """A run that was stopped in its first stage."""
    return {
        "format": 1,
        "preceptor": "0.1.0",
        "title": "shop",
        "seconds": 0,
        "models": {},
        "datasets": {},
        "curves": [],
        "examples": [],
        "examples_total": {"forgotten": 0, "gained": 0},
        "published": [],
        "mt_bench": None,
        "alpaca_eval": None,
        "tasks": None,
        "differences": [],
        "warnings": [],
        "figures": [],
        "runs": [
            {
                "id": "shop",
                "path": "runs/shop",
                "seed": None,
                "recipe": None,
                "problems": ["recipe.yaml: is missing", "kd: has started.json and no stage.json"],
                "stages": [
                    {
                        "name": "kd",
                        "kind": "distill",
                        "status": "unfinished",
                        "seconds": None,
                        "started": None,
                        "finished": None,
                        "versions": {},
                        "hardware": {},
                        "settings": {},
                        "results": {},
                        "data": None,
                    }
                ],
            }
        ],
    }


def hostile() -> dict[str, Any]:
    """A rich report in which every text that strangers can choose tries to break out."""
    report = rich(models=len(HOSTILE) + 2, tasks=len(HOSTILE))
    everything = " ".join(HOSTILE)
    report["title"] = everything
    for entry, text in zip(list(report["models"].values())[1:], HOSTILE, strict=False):
        entry["title"] = text
        entry["tasks"] = {**entry["tasks"], text: next(iter(entry["tasks"].values()))}
    report["models"][everything] = report["models"].pop("m3")
    for each in report["examples"]:
        each |= {"prompt": everything, "expected": everything, "task": (each["row"] % 2 and everything) or "plain"}
        for answer in each["answers"]:
            answer["answer"] = everything
    for run in report["runs"]:
        run |= {"recipe": everything, "path": everything, "problems": [everything]}
        run["stages"][0] |= {
            "name": everything,
            "settings": {everything: everything},
            "versions": {everything: everything},
        }
    for curve in report["curves"]:
        curve["title"] = f"{HOSTILE[0]}{HOSTILE[3]}{HOSTILE[6]}{curve['stage']}"
        curve["series"][f"logits/{everything}"] = curve["series"]["logits"]
    report["warnings"] = list(HOSTILE)
    report["mt_bench"]["judge"] = report["alpaca_eval"]["judge"] = everything
    return report
