"""One module per kind of stage, imported when a stage of that kind runs.

An executor is `execute(spec, context) -> results`: it writes into `context.directory` and returns what
`stage.json` should record (JSON values). It finds an unfinished directory as it was left, and resumes from
it. A check is `check_training(training)`: it raises InputError for keys or values that the stage would
refuse later, in sentences that begin with `training`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from preceptor.stages.context import StageContext

Executor = Callable[[Any, StageContext], dict[str, Any]]
Check = Callable[[dict[str, Any]], None]

EXECUTORS: dict[str, str | Executor] = {
    "init": "preceptor.stages.init:execute",
    "sft": "preceptor.stages.train:execute",
    "distill": "preceptor.stages.train:execute",
    "generate": "preceptor.stages.generate:execute",
    "store": "preceptor.stages.store:execute",
    "compose": "preceptor.stages.compose:execute",
    "merge": "preceptor.stages.merge:execute",
    "evaluate": "preceptor.stages.evaluate:execute",
}
# Executed by all processes of a run at once; stages of other kinds by the first one alone.
TOGETHER = ("sft", "distill", "store")
CHECKS: dict[str, str | Check] = {
    "sft": "preceptor.stages.build:check_training",
    "distill": "preceptor.stages.build:check_training",
}
# What else can be refused before anything runs. Those of models take resolved ModelSpecs and read no weights: files
# that cannot be a model, a student and a teacher whose tokenizers differ, models that cannot be composed or merged.
# `rows` and `suites` take the StageContext of an `evaluate` stage; `served` a `store` stage; `store` a teacher and a
# StageContext, and returns the folder of the store that it is; `stored` a distill stage and its StageContext.
AHEAD_CHECKS: dict[str, str | Callable[..., object]] = {
    "one": "preceptor.models.checkpoint:check_model",
    "pair": "preceptor.models.tokenizers:check_pair",
    "compose": "preceptor.models.compose:check_composition",
    "merge": "preceptor.models.sources:check_sources",
    "rows": "preceptor.stages.evaluate:check_rows",
    "suites": "preceptor.stages.suites:check_suites",
    "served": "preceptor.stages.stores:check_served",
    "store": "preceptor.stages.stores:stored_at",
    "stored": "preceptor.stages.stores:check_stored",
}


def executor_of(kind: str) -> Executor:
    """The function that runs stages of a kind; imports its module."""
    executor: Executor = _imported(EXECUTORS[kind])
    return executor


def check_of(kind: str) -> Check | None:
    """The function that checks the `training:` block of a kind, or None for kinds without one."""
    check: Check | None = _imported(CHECKS[kind]) if kind in CHECKS else None
    return check


def ahead_check(what: str) -> Callable[..., object]:
    """One of `AHEAD_CHECKS`; imports its module."""
    check: Callable[..., object] = _imported(AHEAD_CHECKS[what])
    return check


def _imported(entry: Any) -> Any:
    if not isinstance(entry, str):
        return entry
    module, _, function = entry.partition(":")
    return getattr(importlib.import_module(module), function)
