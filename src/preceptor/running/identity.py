"""What decides whether a stage's result can be kept: spec, seed, and the content of all it reads.

Left out is what cannot change a result (logging, saving, trackers, workers, devices, world size, per-device
batch) and where things lie: a data file that moved is the same file. Versions and hardware are recorded,
not hashed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from preceptor.errors import InputErrors, shown
from preceptor.recipe import EvaluateStage, Recipe, expand, models_of
from preceptor.recipe.evaluating import FILES
from preceptor.recipe.suites import TRANSPORT_KEYS
from preceptor.running.inputs import FILE_KEY, Inputs
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
            reader = Inputs(recipe, name, hashes, known)
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
        if path == "results_version":
            found.append("by another version of preceptor, and this one gives other results")
        elif isinstance(old, str) and isinstance(new, str) and re.fullmatch("[0-9a-f]{40,64}", f"{new}"):
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
            and not (key == FILE_KEY and isinstance(value, str))  # of this the content is read
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
