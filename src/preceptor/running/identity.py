"""What decides whether a stage's result can be kept: spec, seed, and the content of all it reads.

Left out is what cannot change a result (logging, saving, trackers, workers, devices, world size, per-device
batch) and where things lie: a data file that moved is the same file. Versions and hardware are recorded,
not hashed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from preceptor.errors import InputError, InputErrors, shown
from preceptor.evaluation.task_files import task_files
from preceptor.recipe import (
    EvaluateStage,
    InitStage,
    ModelSpec,
    Recipe,
    StoreStage,
    TrainingStage,
    expand,
    local_path,
    models_of,
)
from preceptor.recipe.base import one_or_many, stage_of
from preceptor.recipe.evaluating import FILES
from preceptor.recipe.suites import TRANSPORT_KEYS
from preceptor.system.files import sha256_json
from preceptor.system.hashes import Hashes

RESULTS_VERSION = 2
"""Raised whenever the same recipe on the same data gives other numbers than before.

2: blank answers between others are no targets, and rows that spell a control token in other letters are dropped.
"""
_VERSIONS = {"evaluate": 3}  # of kinds whose numbers alone have changed: 2 had other bootstrap intervals already

# Keys and prefixes of `training:` that cannot change a result.
_IGNORED_KEYS = frozenset(
    (
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "debug",
        "disable_tqdm",
        "do_eval",
        "do_predict",
        "do_train",
        "enable_jit_checkpoint",
        "eval_accumulation_steps",
        "fsdp",
        "fsdp_config",
        "include_for_metrics",
        "include_num_input_tokens_seen",
        "local_rank",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "parallelism_config",
        "per_device_eval_batch_size",
        "per_device_train_batch_size",
        "project",
        "report_to",
        "restore_callback_states_from_checkpoint",
        "run_name",
        "skip_memory_metrics",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
        "torch_empty_cache_steps",
        "trackio_space_id",
        "use_cpu",
    )
)
_IGNORED_PREFIXES = ("logging_", "ddp_", "hub_")
_FILE_KEY = "deepspeed"  # the key of `training:` whose value may be the path of a file


def stage_identities(recipe: Recipe, names: Iterable[str], hashes: Hashes) -> dict[str, dict[str, Any]]:
    """For each named stage and all it reads: `{"identity", "spec", "seed", "inputs", "results_version"}`.

    `identity` is the SHA-256 of the others. Raises InputErrors naming each path that does not exist.
    """
    wanted = set(names)
    for name in reversed(recipe.stages):
        if name in wanted:
            wanted.update(recipe.stage_reads(name))
    known: dict[str, dict[str, Any]] = {}
    errors: list[str] = []
    for name in recipe.stages:  # a stage reads earlier ones only, so theirs are known by then
        if name in wanted:
            hashes.reader = name
            reader = _Inputs(recipe, name, hashes, known)
            document = {
                "spec": _spec_document(recipe, name),
                "seed": recipe.seed,
                "inputs": reader.collect(),
                "results_version": _VERSIONS.get(recipe.stages[name].kind, RESULTS_VERSION),
            }
            errors += reader.errors
            known[name] = {"identity": sha256_json(document), **document}
    if errors:
        raise InputErrors(list(dict.fromkeys(errors)))
    return known


def same_result(one: Recipe, other: Recipe, name: str) -> bool:
    """Whether stage `name` of two recipes that read the same files gives the same result, and can go on as either."""
    return one.seed == other.seed and _spec_document(one, name) == _spec_document(other, name)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two identity documents, leaf by leaf: `spec.rows_per_step was 16, is 32`."""
    found: list[str] = []
    for section in ("spec", "seed", "inputs", "results_version"):
        _compare(section, old.get(section), new.get(section), found)
    return found


def _compare(path: str, old: Any, new: Any, found: list[str]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            _compare(f"{path}.{key}", old.get(key), new.get(key), found)
    elif old != new:
        if isinstance(old, str) and isinstance(new, str) and re.fullmatch("[0-9a-f]{40,64}", f"{new}"):
            found.append(f"the content of {path.removeprefix('inputs.')} has changed")
        else:
            found.append(f"{path} was {shown(old)}, is {shown(new)}")


def _spec_document(recipe: Recipe, name: str) -> dict[str, Any]:
    """The stage's spec with defaults, without what cannot change a result and without paths."""
    stage = recipe.stages[name]
    spec = stage.model_dump(mode="json", by_alias=True)
    if "training" in spec:
        training = spec["training"]
        ignored: tuple[str, ...] = _IGNORED_PREFIXES
        if not training.get("load_best_model_at_end"):  # otherwise the saved steps decide which one is best
            ignored = (*ignored, "save_")
        balances = any(term["kind"] == "router_balance" and term["weight"] > 0 for term in spec["objective"])
        # Load is balanced within each micro-batch, the one thing whose size matters.
        counted = {"per_device_train_batch_size"} if balances else set()
        spec["training"] = {
            key: value
            for key, value in training.items()
            if key not in _IGNORED_KEYS - counted
            and not key.startswith(ignored)
            and not (key == _FILE_KEY and isinstance(value, str))  # of this the content is read
        }
        spec.pop("max_nonfinite_steps")  # it decides whether there is a result, not which one
    for key in models_of(stage):
        holder: Any = spec
        for step in key[:-1]:
            holder = holder[step]
        model = holder[key[-1]]
        if isinstance(model, str):
            holder.pop(key[-1])  # the tokenizer of an init stage, a bare path
            continue
        if isinstance(model, list):  # of a route's only teacher
            model = model[0]["model"]
        for place in ("path", "revision", "adapter", "device_map", "sharded"):
            model.pop(place, None)
    if spec["kind"] in ("generate", "evaluate", "store"):
        spec.pop("batch_size")
    if spec["kind"] == "store":
        spec.pop("shard_megabytes")
        if "endpoint" in spec["teacher"]:
            spec["teacher"] = {key: value for key, value in spec["teacher"].items() if key not in TRANSPORT_KEYS}
            spec["teacher"]["endpoint"] = expand(spec["teacher"]["endpoint"])  # $VLLM may be another address by now
    if isinstance(stage, EvaluateStage):
        _drop_of_suites(spec)
    if spec["kind"] == "init" and spec["chat_template"] not in (None, "default"):
        spec.pop("chat_template")
    return spec


def _drop_of_suites(spec: dict[str, Any]) -> None:
    """Takes out of an evaluate stage's spec the files of its suites, and how endpoints are reached."""
    scored = spec["models"]
    endpoints = [each for each in (scored.values() if isinstance(scored, dict) else scored) if "endpoint" in each]
    for suite, files in FILES.items():
        if (part := spec[suite]) is None:
            spec.pop(suite)  # as if there were no such key: stages from before there was one are still the same
        else:
            endpoints += [part["judge"]] if part.get("judge") else []
            for key in (*files, "batch_size"):
                part.pop(key)
    for endpoint in endpoints:
        for key in TRANSPORT_KEYS:
            endpoint.pop(key)


class _Inputs:
    """The content of what one stage reads, and an error for each thing that is not there."""

    def __init__(self, recipe: Recipe, name: str, hashes: Hashes, known: dict[str, dict[str, Any]]) -> None:
        self.recipe, self.name, self.hashes, self.known = recipe, name, hashes, known
        self.errors: list[str] = []

    def collect(self) -> dict[str, Any]:
        stage = self.recipe.stages[self.name]
        inputs: dict[str, Any] = {}
        for key, model in models_of(stage).items():
            dotted = ".".join(map(str, key))
            inputs[dotted] = self._model(f"stages.{self.name}.{dotted}", model)
            if isinstance(stage, StoreStage) and key == ("student",):
                inputs[dotted] = _of_tokenizer(inputs[dotted])
        names = self.recipe.stage_datasets(self.name)
        overlap = self.recipe.overlap
        if overlap is not None and set(overlap.losers) & set(names):
            # Which rows it loses depends on all the datasets that `specs_for` takes besides the stage's own.
            inputs["overlap"] = overlap.model_dump(mode="json")
            names += [other for other, spec in self.recipe.data.items() if other not in names and not spec.stages]
        for used in names:
            inputs[f"data.{used}"] = self._dataset(used)
        if isinstance(stage, InitStage) and stage.chat_template not in (None, "default"):
            inputs["chat_template"] = self._content(
                f"stages.{self.name}.chat_template", str(stage.chat_template), None, hub=None
            )
        if isinstance(stage, EvaluateStage):
            for key, text in stage.files.items():
                dotted = ".".join(map(str, key))
                inputs[dotted] = self._content(f"stages.{self.name}.{dotted}", text, None, hub=None)
            if stage.tasks is not None and not self.errors:
                folders = [str(local_path(folder, self.recipe.folder)) for folder in stage.tasks.include]
                outside = task_files(stage.tasks.model_copy(update={"include": folders}))
                inputs["tasks.data"] = [self.hashes.content(file) for file in outside]
        if isinstance(stage, TrainingStage) and isinstance(value := stage.training.get(_FILE_KEY), str):
            inputs[f"training.{_FILE_KEY}"] = self._training_file(f"stages.{self.name}.training.{_FILE_KEY}", value)
        return inputs

    def _training_file(self, where: str, text: str) -> str | None:
        try:
            return self.hashes.file(Path(text))  # from the working directory, as transformers opens it
        except OSError as error:
            self.errors.append(
                f"{self.recipe.source}: {where}: {shown(text)} cannot be read ({error.strerror}); give the path of a "
                "file, from the working directory, or write its content here as a mapping"
            )
        return None

    def _model(self, where: str, model: ModelSpec) -> dict[str, Any]:
        result = {"path": self._content(where, model.path, model.revision, hub="model")}
        if model.adapter is not None:
            result["adapter"] = self._content(f"{where}.adapter", model.adapter, None, hub="model")
        return result

    def _dataset(self, name: str) -> dict[str, Any]:
        spec = self.recipe.dataset(name)
        document = spec.model_dump(mode="json", exclude={"path", "test", "revision"})
        if not isinstance(self.recipe.stages[self.name], EvaluateStage):
            # How rows are scored, and what their score counts as: nothing that training or generating reads.
            document.pop("role")
            document.pop("metric")
        for key, value in (("path", spec.path), ("test", spec.test)):
            document[key] = [
                self._content(f"data.{name}.{key}", text, spec.revision, hub="dataset", only_hub=spec.format == "hub")
                for text in one_or_many(value)
            ]
        return document

    def _content(self, where: str, text: str, revision: str | None, *, hub: str | None, only_hub: bool = False) -> Any:
        source = stage_of(text)
        if source is not None:
            return {"stage": self.known[source]["identity"]}
        try:
            path = None if only_hub else local_path(text, self.recipe.folder)
            if path is not None:
                return self.hashes.content(path)
            if hub is None:
                raise InputError(f"{text!r} does not exist; give the path of a file")
            return {"hub": expand(text), "commit": hub_commit(expand(text), revision, hub)}
        except InputError as error:
            self.errors.append(f"{self.recipe.source}: {where}: {error}")
        except OSError as error:
            self.errors.append(f"{self.recipe.source}: {where}: {text!r} cannot be read ({error.strerror})")
        return None


def _of_tokenizer(model: Any) -> Any:
    """Of a local model's files those that are no weights: a store encodes rows for a student and never reads it."""
    files = model["path"]
    if not isinstance(files, dict) or not files.keys().isdisjoint({"stage", "hub"}):
        return model
    kept = {name: digest for name, digest in files.items() if not name.endswith(".safetensors")}
    return {**model, "path": {name: digest for name, digest in kept.items() if name != "config.json"}}


def hub_commit(name: str, revision: str | None, kind: str) -> str:
    """The commit that `revision` (default `main`) of a Hub `model` or `dataset` stands for.

    Asks the Hub, and without a connection the local cache. Raises InputError when neither knows.
    """
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError

    try:
        info = HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=10)
        if info.sha:
            return str(info.sha)
        problem = "the Hub gives no commit"
    except HFValidationError:
        raise InputError(f"{name!r} is neither a path here nor a Hub id; mend the path, or write owner/name") from None
    except Exception as error:  # of a class that depends on the client's HTTP library
        problem = str(error).strip().split("\n")[0][:200] or type(error).__name__
    cached = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "refs" / (revision or "main")
    # A revision is a recipe's text: it may not lead to other files, whose content would be recorded as the commit.
    if cached.parent.is_relative_to(constants.HF_HUB_CACHE) and ".." not in cached.parts and cached.is_file():
        return cached.read_text().strip()
    raise InputError(
        f"{name!r} is no path here, and as a Hub {kind} it cannot be found ({problem}); "
        "mend the path or the id, or connect to the Hub"
    )
