"""Task suites: named models on the tasks of lm-evaluation-harness (github.com/EleutherAI/lm-evaluation-harness).

The harness asks and scores, by its own definitions; models, chat templates and seeds are those of the recipe, and each
model's results are kept in a file of their own, so that a stopped evaluation goes on with the next model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from preceptor.data.template import choose_template
from preceptor.evaluation.harness import caught, evaluate, language_model, longest_answer, too_long
from preceptor.evaluation.harness_tasks import Catalogue, leaves, scored_names
from preceptor.evaluation.progress import Progress
from preceptor.evaluation.task_files import task_files
from preceptor.models.checkpoint import check_model
from preceptor.models.load import load_model
from preceptor.models.tokenizers import check_tokenizer_fits, load_tokenizer
from preceptor.system.files import json_text, sha256_file, sha256_json, write_atomic

if TYPE_CHECKING:
    from preceptor.recipe import ModelSpec, TasksSpec

Log = Callable[[str], None]

BOOTSTRAP_ITERATIONS = 1000
"""Resamples behind the standard error of a metric that is no mean (F1, BLEU); means have a formula."""
_KEPT = (
    "results",
    "groups",
    "group_subtasks",
    "versions",
    "n-shot",
    "n-samples",
    "higher_is_better",
    "configs",
    "config",
    "chat_template_sha",
)
"""What is kept of the harness's own results."""


def check_tasks(
    spec: TasksSpec, *, where: str = "tasks", data: bool = False, models: Mapping[str, ModelSpec] | None = None
) -> None:
    """Makes sure, before anything runs, that the harness is installed and knows every name; takes seconds at most.

    Args:
        spec: its folders resolved.
        where: how a message begins, such as `stages.scores.tasks`.
        data: reads the tasks' data as well, which is downloaded where it has not been.
        models: with `data`, by name with their paths resolved: makes sure that the answers of each task fit the context
            of those whose config says it.

    Raises:
        InputError: otherwise.
    """
    catalogue = Catalogue(spec, where=where)
    if not data:
        return
    with caught():
        tasks = [task for name in spec.names for item in catalogue.load(name) for task in leaves(item)]
    contexts = {name: _context(model) for name, model in (models or {}).items()}
    for task in tasks:
        if task.OUTPUT_TYPE != "generate_until":
            continue
        longest = longest_answer(task.config.generation_kwargs or {})
        for name, context in contexts.items():
            if context is not None and longest >= context:
                raise too_long(where, task.task_name, longest, name, context)


def _context(model: ModelSpec) -> int | None:
    """The context of a model in a folder, in tokens, as the harness reads it from the config; None if it says none."""
    if not Path(model.path).is_dir():
        return None
    config = check_model(model).config
    for part in (config.get("text_config") or {}, config):
        for key in ("n_positions", "max_position_embeddings", "n_ctx"):
            if isinstance(length := part.get(key), int):
                return length
    return None


def run_tasks(
    models: Mapping[str, ModelSpec],
    spec: TasksSpec,
    *,
    directory: Path,
    seed: int = 0,
    reference: str | None = None,
    log: Log = lambda line: None,
    where: str = "tasks",
) -> dict[str, Any]:
    """Scores of all models on all tasks: `tasks` of `scores.json` as docs/scores.md describes it.

    Args:
        models: by name; paths resolved.
        spec: its folders resolved.
        directory: where `tasks/NAME.json` is written after each model. One that is there and answers the same request
            is kept; whether it is of the same weights the caller answers for.
        seed: of few-shot examples, of sampled answers and of bootstrapped standard errors.
        reference: whose chat template a model without one is given.
        log: takes progress lines.
        where: how a message begins.

    Raises:
        InputError: as `check_tasks`; data that cannot be read; whatever loading models refuses.
    """
    catalogue = Catalogue(spec, where=where)
    theirs = None if reference is None else load_tokenizer(models[reference])
    scores: dict[str, Any] = {"harness": catalogue.version, "models": {}, "warnings": []}
    if spec.limit is not None:
        scores["warnings"].append(
            f"tasks: at most {spec.limit:,} examples of each were asked (`limit`), so these scores are for trials only"
        )
    files = _files(spec)
    for number, (name, model) in enumerate(models.items(), 1):
        title = f"{name} ({number} of {len(models)})"
        path = directory / "tasks" / f"{name}.json"
        request = _request(spec, files, model, seed, catalogue.version)
        found = _kept(path, request)
        if found is None:
            found = _run(model, spec, catalogue, seed=seed, theirs=theirs, title=title, log=log)
            path.parent.mkdir(parents=True, exist_ok=True)
            found = {"format": 1, "request": request, "harness": catalogue.version, "model": model.title, **found}
            write_atomic(path, json_text(found))
            log(f"{title}: {_sentence(_entries(found))} in {found['seconds']:.1f} s")
        else:
            log(f"{title}: its task results are there, kept")
        scores["models"][name] = _entries(found)
        if found["cut"]:
            scores["warnings"].append(
                f"tasks: some prompts are longer than the context of {name} and were cut from the left"
            )
    return scores


def _run(
    spec: ModelSpec, tasks: TasksSpec, catalogue: Catalogue, *, seed: int, theirs: Any, title: str, log: Log
) -> dict[str, Any]:
    """The harness's results for one model, as JSON."""
    started = time.monotonic()
    with caught(log) as noise:
        loaded = [task for name in tasks.names for task in catalogue.load(name)]  # anew: tasks remember their requests
    tokenizer = load_tokenizer(spec)
    if tasks.chat_template and (source := choose_template(tokenizer, theirs)) != "student":
        which = "the default one" if source == "default" else "that of the reference"
        log(f"{title}: the model has no chat template; {which} is used")
    model = load_model(spec, role="teacher")
    check_tokenizer_fits(tokenizer, model)
    if spec.device_map is None and torch.cuda.is_available():
        model = model.to("cuda")
    with caught(log) as more:
        found = evaluate(
            model=language_model(
                model,
                tokenizer,
                batch_size=tasks.batch_size,
                progress=lambda what, total: Progress(f"{title}: tasks, {what}", total, more.say, unit="requests"),
                name=title.partition(" (")[0],
                where=catalogue.where,
            ),
            tasks=loaded,
            task_manager=catalogue.manager,  # else it indexes its own tasks, for seconds
            num_fewshot=tasks.num_fewshot,
            batch_size=tasks.batch_size,
            limit=tasks.limit,
            bootstrap_iters=BOOTSTRAP_ITERATIONS,
            apply_chat_template=tasks.chat_template,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    for warning in (warnings := list(noise.warnings | more.warnings)):
        log(f"{title}: lm-eval: {warning}")
    return {
        "asked": [name for task in loaded for name in scored_names(task)],
        # Configs hold functions and types.
        **json.loads(json.dumps({key: found[key] for key in _KEPT if key in found}, default=str)),
        "cut": more.cut,
        "warnings": warnings,
        "seconds": round(time.monotonic() - started, 3),
    }


def _files(tasks: TasksSpec) -> list[Any]:
    """The SHA-256 of all local files that the tasks are made of, their data among them."""
    inside = {
        str(file.relative_to(folder)): sha256_file(file)
        for folder in map(Path, tasks.include)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(part.startswith((".", "__pycache__")) for part in file.relative_to(folder).parts)
    }
    return [inside, [sha256_file(file) for file in task_files(tasks)]]


def _request(tasks: TasksSpec, files: list[Any], model: ModelSpec, seed: int, harness: str) -> str:
    """What a file of results answers: all that can change them, beside the weights and what is on the Hub."""
    asked = tasks.model_dump(mode="json", exclude={"batch_size", "include"})
    return sha256_json([asked, *files, model.model_dump(mode="json"), seed, harness])


def _kept(path: Path, request: str) -> dict[str, Any] | None:
    """The results in a file, where they answer this request."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if found["request"] == request else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _entries(found: Mapping[str, Any]) -> dict[str, Any]:
    """One entry for each metric of each task and group asked for; a task's first metric has the task's own name."""
    entries: dict[str, Any] = {}
    for task in found["asked"]:
        result = found["results"][task]
        better = found["higher_is_better"].get(task) or {}
        for number, (metric, filter_, value) in enumerate(_values(result)):
            words = [task, *([metric] if number else []), *([filter_] if number and filter_ != "none" else [])]
            stderr = result.get(f"{metric}_stderr,{filter_}")
            entries[" ".join(words)] = {
                "metric": metric,
                "filter": filter_,
                "value": value,
                "stderr": stderr if isinstance(stderr, float) else None,
                "rows": result.get("sample_len"),
                "higher_is_better": better.get(metric),
            }
    return entries


def _values(result: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Metric, filter and value, in the task's order; metrics that are no number are left to the file."""
    for key, value in result.items():
        metric, comma, filter_ = key.rpartition(",")
        if comma and not metric.endswith("_stderr") and type(value) in (int, float):
            yield metric, filter_, float(value)


def _sentence(entries: Mapping[str, Any]) -> str:
    said = []
    for name, each in entries.items():
        metric = "" if " " in name else f" {each['metric']}"
        error = "" if each["stderr"] is None else f" ± {each['stderr']:.4f}"
        said.append(f"{name}{metric} {each['value']:.4f}{error}")
    more = f" and {len(said) - 5} more" if len(said) > 6 else ""
    return ", ".join(said[: 5 if more else 6]) + more
