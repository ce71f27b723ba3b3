"""The recipe of one `evaluate` stage that the options of `preceptor evaluate` stand for.

Scoring a checkpoint needs no recipe file; but it is the same stage as in one, so it resumes, refuses and reports alike,
and the recipe is left in the run's directory for a user who wants to change more than the options offer.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from preceptor.errors import InputError

STAGE = "scores"
SOURCE = "preceptor evaluate"
"""What messages and recipe.yaml call the recipe."""
_ADDRESSES = ("http://", "https://")


def evaluation(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The recipe as a mapping, and the `key=value` texts among the arguments that are to be applied to it.

    Raises:
        InputError: an option that contradicts another or names a folder without the official files.
    """
    models, overrides = _models(options.models)
    out = Path(options.out).absolute()
    stage: dict[str, Any] = {"kind": "evaluate", "models": models}
    for role in ("reference", "expert"):
        name = getattr(options, role)
        if name is not None:
            loaded = [each for each, model in models.items() if "path" in model]
            if name not in loaded:
                raise InputError(
                    f"preceptor evaluate: --{role} is {name!r}, and the models that are loaded here are "
                    f"{', '.join(loaded) or 'none'}; name one of them"
                )
            stage[role] = dict(models[name])
    data = {
        **_datasets("general", options.general),
        **_datasets("domain", options.domain),
    }
    if data:
        stage["on"] = list(data)
    judge = _judge(options)
    if options.mt_bench is not None:
        stage["mt_bench"] = {**_mt_bench(Path(options.mt_bench)), **judge}
    if options.alpaca_eval is not None:
        prompt = {} if options.annotator_prompt is None else {"prompt": _absolute(options.annotator_prompt)}
        stage["alpaca_eval"] = {"baseline": _absolute(options.alpaca_eval), **prompt, **judge}
    if judge and options.mt_bench is None and options.alpaca_eval is None:
        raise InputError("preceptor evaluate: --judge has nothing to judge; add --mt-bench or --alpaca-eval")
    if options.tasks is not None:
        names = [name.strip() for name in options.tasks.split(",")]
        stage["tasks"] = {"names": names, "include": [_absolute(folder) for folder in options.include]}
    for given, needed in (("include", "tasks"), ("annotator_prompt", "alpaca_eval")):
        if getattr(options, given) and getattr(options, needed) is None:
            flags = [f"--{each.replace('_', '-')}" for each in (given, needed)]
            raise InputError(f"preceptor evaluate: {flags[0]} is given without {flags[1]}; add that, or leave it out")
    if not (data or overrides) and all(getattr(options, each) is None for each in ("mt_bench", "alpaca_eval", "tasks")):
        raise InputError(
            "preceptor evaluate: there is nothing to score models on; add --general FILE, --domain FILE, --mt-bench, "
            "--alpaca-eval or --tasks"
        )
    return {
        "name": out.name,
        "runs_dir": str(out.parent),
        "data": data,
        "stages": {STAGE: stage},
    }, overrides


def _models(given: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    models: dict[str, Any] = {}
    overrides = []
    for text in given:
        name, separator, value = text.partition("=")
        if separator and (name == "seed" or name.startswith(("stages.", "data."))):
            overrides.append(text)
            continue
        # An address may hold "=" as well; a name has no slash.
        if not separator or "/" in name:
            name, value = "", text
        model = _endpoint(value, text) if value.startswith(_ADDRESSES) else {"path": _absolute(value)}
        name = name or _name(model.get("model") or value)
        if name in models:
            raise InputError(
                f"preceptor evaluate: two models are called {name!r}; give them names, as in first={value} other=…"
            )
        models[name] = model
    return models, overrides


def _name(value: str) -> str:
    """The last part of a path or id; of a stage's `model` or `adapter` the stage's name, by which a run calls it."""
    *before, last = value.rstrip("/").split("/")
    return before[-1] if last in ("model", "adapter") and before and before[-1].strip(".") else last


def _endpoint(value: str, given: str) -> dict[str, Any]:
    url, _, model = value.partition("#")
    if not model:
        raise InputError(f"preceptor evaluate: {given!r} names no model of the endpoint; write {url}#MODEL")
    return {"endpoint": url, "model": model}


def _datasets(role: str, files: Sequence[str]) -> dict[str, Any]:
    """Named after their role, and numbered where there are several."""
    names = [role] if len(files) == 1 else [f"{role}-{number}" for number in range(1, len(files) + 1)]
    return {
        name: {"path": _absolute(file), "holdout": "all", "role": role} for name, file in zip(names, files, strict=True)
    }


def _judge(options: argparse.Namespace) -> dict[str, Any]:
    if options.judge is None:
        if options.judge_key_env is not None:
            raise InputError("preceptor evaluate: --judge-key-env is given without --judge; add --judge URL#MODEL")
        return {}
    key = {} if options.judge_key_env is None else {"key_env": options.judge_key_env}
    return {"judge": {**_endpoint(options.judge, f"--judge {options.judge}"), **key}}


def _mt_bench(folder: Path) -> dict[str, Any]:
    """The official files where FastChat's `llm_judge/data/mt_bench` has them."""
    questions = folder if folder.is_file() else folder / "question.jsonl"
    if not questions.is_file():
        raise InputError(
            f"preceptor evaluate: --mt-bench {folder}: there is no question.jsonl; give the folder of the official "
            "data (fastchat/llm_judge/data/mt_bench)"
        )
    found = {"questions": _absolute(str(questions))}
    for key, name in (("prompts", "judge_prompts.jsonl"), ("references", "reference_answer/gpt-4.jsonl")):
        path = next((place / name for place in questions.parents[:2] if (place / name).is_file()), None)
        if path is not None:
            found[key] = _absolute(str(path))
    return found


def _absolute(text: str) -> str:
    """A path that is there so that the recipe which is left behind runs from anywhere; anything else as it is."""
    path = Path(text).expanduser()
    return str(path.absolute()) if path.exists() else text


def check_folder(out: Path) -> None:
    """Makes sure that `--out` is new, or holds what an earlier `preceptor evaluate` left there.

    Raises:
        InputError: it holds the run of another recipe.
    """
    recipe = out / "recipe.yaml"
    if recipe.is_file() and not recipe.read_text(encoding="utf-8", errors="replace").startswith(f"# From {SOURCE},"):
        raise InputError(f"preceptor evaluate: {out} holds the run of another recipe; give another folder with --out")
