"""Evaluates named models on the same rows, one model in memory at a time beside the two that others are compared with.

Independent of recipes' stages: the `evaluate` stage and studies call it alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from preceptor.errors import InputError
from preceptor.evaluation.common import CommonRows, common_rows
from preceptor.evaluation.predict import Settings, predict
from preceptor.evaluation.predictions import kept_predictions, write_predictions
from preceptor.evaluation.remembered import RememberedTeacher
from preceptor.evaluation.rows import EvaluationSet
from preceptor.evaluation.scores import summarise
from preceptor.evaluation.table import score_table, task_table
from preceptor.models.load import load_model
from preceptor.models.offload import is_offloaded
from preceptor.models.tokenizers import check_tokenizer_fits
from preceptor.system.files import json_text, write_atomic
from preceptor.teachers import ModelTeacher

if TYPE_CHECKING:
    from preceptor.recipe import ModelSpec

Log = Callable[[str], None]


def evaluate_models(
    models: Mapping[str, ModelSpec],
    sets: Sequence[EvaluationSet],
    *,
    reference: str | None = None,
    expert: str | None = None,
    settings: Settings | None = None,
    seed: int = 0,
    resamples: int = 1000,
    directory: Path | None = None,
    log: Log = lambda line: None,
) -> dict[str, Any]:
    """Scores of all models on all rows; the content of `scores.json` as docs/scores.md describes it.

    Args:
        models: what to evaluate, by name; paths resolved.
        sets: the rows, see `evaluation_set`.
        reference: the name of the model the others started from. KL to it is taken on general rows.
        expert: the name of the model the domain was learned from. KL to it is taken on domain rows.
        settings: lengths and batch size.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        directory: where `predictions/NAME.jsonl` is written after each model and `scores.json` last. A predictions file
            that is there already and holds these rows is kept; whether it is of these models the caller answers for.
        log: takes progress lines and, at the end, the tables and warnings.

    Raises:
        InputError: whatever loading models refuses; a tokenizer that differs from that of a model compared with; a
            dataset none of whose rows can be used.
    """
    settings = settings or Settings()
    roles = {data.role for data in sets}
    by_role: dict[str, str] = {
        role: name for role, name in (("general", reference), ("domain", expert)) if name and role in roles
    }
    names = {"general": "reference", "domain": "expert"}
    rows = common_rows(
        models,
        sets,
        max_length=settings.max_length,
        reference=reference,
        compared={names[role]: name for role, name in by_role.items()},
        log=log,
    )
    work = _Work(models, rows, by_role, replace(settings, max_length=rows.max_length), log)
    predictions: dict[str, list[dict[str, Any]]] = {}
    for number, name in enumerate(models, 1):
        title = f"{name} ({number} of {len(models)})"
        path = None if directory is None else directory / "predictions" / f"{name}.jsonl"
        kept = None if path is None else kept_predictions(path, rows.sets, tuple(by_role))
        if kept is not None:
            log(f"{title}: its predictions are there, kept")
            predictions[name] = kept
            continue
        started = time.monotonic()
        predictions[name] = work.predict(name, title)
        log(f"{title}: {len(predictions[name]):,} rows in {time.monotonic() - started:.1f} s")
        if path is not None:
            write_predictions(path, predictions[name])
    scores = summarise(predictions, rows.facts, reference=reference, expert=expert, seed=seed, resamples=resamples)
    scores["settings"] = {"max_length": rows.max_length, "max_new_tokens": settings.max_new_tokens}
    if directory is not None:
        write_atomic(directory / "scores.json", json_text(scores))
    for line in [*task_table(scores), *score_table(scores), *(f"note: {each}" for each in scores["warnings"])]:
        log(line)
    return scores


class _Work:
    """Loads models and runs them; those that others are compared with are loaded once, when first needed."""

    def __init__(
        self,
        models: Mapping[str, ModelSpec],
        rows: CommonRows,
        by_role: Mapping[str, str],
        settings: Settings,
        log: Log,
    ) -> None:
        self.models, self.rows, self.by_role = models, rows, by_role
        self.settings, self.log = settings, log
        self.loaded: dict[str, ModelTeacher] = {}
        self.teachers: dict[str, RememberedTeacher] = {}

    def predict(self, name: str, title: str) -> list[dict[str, Any]]:
        """One model's predictions; it is gone from memory afterwards unless others are compared with it."""
        for role, other in self.by_role.items():
            if other not in self.loaded:
                self.loaded[other] = self._load(other)
            if role not in self.teachers:
                self.teachers[role] = RememberedTeacher(self.loaded[other])
        model = self.loaded[name] if name in self.loaded else self._load(name)
        found = predict(
            model.model,
            self.rows.tokenizers[name],
            self.rows.of(name),
            self.settings,
            teachers=self.teachers,
            title=title,
            log=self.log,
        )
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return found

    def _load(self, name: str) -> ModelTeacher:
        """The model frozen on its device, refused where weights are offloaded."""
        spec = self.models[name]
        model = load_model(spec, role="teacher")
        check_tokenizer_fits(self.rows.tokenizers[name], model)
        if is_offloaded(model):
            raise InputError(
                f"models.{name}: `device_map` left some of its weights off the devices (offloaded), which only a "
                "teacher may; give it more devices, or quantise it"
            )
        if spec.device_map is None and torch.cuda.is_available():
            model = model.to("cuda")
        return ModelTeacher(model, name=f"models.{name}")
