"""Spec of the stage that stores a teacher's predictions, and what follows for the stages that learn from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, model_validator

from preceptor.recipe.base import (
    KeyPath,
    Positive,
    Spec,
    TextOrList,
    Whole1,
    Whole2,
    broken_rule,
    choice,
    one_or_many,
    stage_of,
    whole,
)
from preceptor.recipe.models import Model, ModelSpec
from preceptor.recipe.objective import AttentionSpec, LogitsSpec, TermSpec
from preceptor.recipe.routes import RoutesSpec
from preceptor.recipe.suites import EndpointSpec
from preceptor.recipe.training import DistillStage


def _is_served(value: Any) -> str:
    given = isinstance(value, EndpointSpec) or (isinstance(value, dict) and "endpoint" in value)
    return "served" if given else "loaded"


Asked = Annotated[Annotated[Model, Tag("loaded")] | Annotated[EndpointSpec, Tag("served")], Discriminator(_is_served)]
"""A teacher that is loaded here, or one that is served."""
MODES = ("sample", "topk", "full")


class StoreStage(Spec):
    """A teacher is run once on all rows of datasets, and what it predicts at their targets is kept on disk."""

    kind: Literal["store"]
    teacher: Asked
    """A model, or `endpoint` and `model` of one that vLLM serves (mode topk, temperature 1)."""
    student: Model
    """Whose tokenizer and chat template the rows are encoded with; of its weights nothing is read."""
    data: TextOrList
    """A dataset, or a list of them: training, held-out and test rows."""
    max_length: Whole2 = 2048
    """As in the stages that learn from the store, which find rows by their tokens."""
    targets: Annotated[Literal["assistant", "all"], choice("assistant", "all")] | None = None
    """Which tokens are targets, as in the stages that learn from the store; None: as each dataset says."""
    mode: Annotated[Literal["sample", "topk", "full"], choice(*MODES)] = "sample"
    """`sample`: drawn tokens, for forward_kl; `topk`: the most probable, and the mass of the rest; `full`: all."""
    draws: Annotated[int, whole(1, 1000)] = 50
    """Tokens drawn per target position, `sample` only."""
    k: Whole1 = 64
    """Tokens kept per target position, `topk` only."""
    temperature: Positive = 1.0
    """Divides the teacher's logits; the one temperature at which the store can be learned from."""
    batch_size: Whole1 = 8
    """Rows the teacher is run on at once; changes speed and memory only."""
    shard_megabytes: Whole1 = 128
    """Size of the files; a stopped stage goes on after the last whole one."""

    @property
    def dataset_names(self) -> list[str]:
        """Names of the datasets whose rows are stored; `stage:NAME` stands for itself."""
        return one_or_many(self.data)

    @model_validator(mode="after")
    def _settings_of_the_mode(self) -> StoreStage:
        for key, mode in (("draws", "sample"), ("k", "topk")):
            if key in self.model_fields_set and self.mode != mode:
                raise broken_rule(
                    f"{key} is for mode: {mode}, and the mode is {self.mode}; remove it, or change the mode"
                )
        if isinstance(self.teacher, EndpointSpec):
            for key in ("token_limit_field", "omit", "price"):
                if key in self.teacher.model_fields_set:
                    raise broken_rule(f"teacher.{key} is for chats, and a teacher is asked for no text; remove it")
        if isinstance(self.teacher, EndpointSpec) and self.mode != "topk":
            raise broken_rule(
                f"mode is {self.mode}, and a served teacher tells its most probable tokens only; write mode: topk"
            )
        if isinstance(self.teacher, EndpointSpec) and self.temperature != 1.0:
            raise broken_rule(
                f"temperature is {self.temperature:g}, and a served teacher's log-probabilities are unscaled whatever "
                "temperature is asked for; write temperature: 1, or load the teacher here"
            )
        return self


def follows_store(stage: DistillStage, key: KeyPath, mode: str, temperature: float) -> Iterator[tuple[KeyPath, str]]:
    """Yields what a store at the teacher `key` cannot give to the terms that follow it: key path and sentence."""
    for index, term in enumerate(stage.objective):
        if not isinstance(term, TermSpec) or not _covers(stage, key, term):
            continue
        path: KeyPath = ("objective", index)
        if isinstance(term, AttentionSpec):
            yield (
                path,
                f"is wrong: attention is distilled from a live teacher only, and {_dotted(key)} is stored; remove the "
                "term, give it `routes` with live teachers, or name the model itself as the teacher",
            )
        if not isinstance(term, LogitsSpec):
            continue
        if mode == "sample" and term.divergence != "forward_kl":
            yield (
                (*path, "divergence"),
                f"is {term.divergence!r}, and {_dotted(key)} is stored as sampled tokens, which give forward_kl only; "
                "write forward_kl, or store it with mode: topk or full",
            )
        if term.temperature != temperature:
            yield (
                (*path, "temperature"),
                f"is {term.temperature:g}, and the store that {_dotted(key)} names is of temperature {temperature:g}; "
                "write the same in both",
            )


def reads_store(stage: DistillStage, key: KeyPath, store: StoreStage, name: str) -> Iterator[tuple[KeyPath, str]]:
    """Yields in what a stage's rows would not be those that the store stage `name` keeps."""
    for setting in ("max_length", "targets"):
        ours, theirs = getattr(stage, setting), getattr(store, setting)
        if ours != theirs:
            yield (
                (setting,),
                f"is {_word(ours)}, and stage {name} stores rows with {setting}: {_word(theirs)}, so that they have "
                "other tokens or targets; write the same in both",
            )
    taught = stage.dataset_names
    if isinstance(stage.teacher, RoutesSpec):
        own = set(stage.teacher.routes)
        taught = [used for used in taught if (used not in own if key[-1] == "default" else used == key[2])]
    for used in taught:
        if used not in store.dataset_names:
            yield (
                key,
                f"is {f'stage:{name}'!r}, which stores no rows of {used}; add {used} to the `data` of stage {name}",
            )


def unused_keys(model: ModelSpec) -> Iterator[str]:
    """Keys of a model that mean nothing for a store."""
    for key in ("revision", "dtype", "quantization", "adapter", "device_map", "sharded"):
        if getattr(model, key) is not None:
            yield key


def stored_by(model: ModelSpec, stages: object) -> str | None:
    """The `store` stage that a teacher names, if it names one of `stages`."""
    name = stage_of(model.path)
    stage = stages.get(name) if isinstance(stages, dict) and name is not None else None
    return name if isinstance(stage, StoreStage) else None


def _covers(stage: DistillStage, key: KeyPath, term: TermSpec) -> bool:
    if term.routes is None or not isinstance(stage.teacher, RoutesSpec):
        return True
    if key[-1] == "default":
        return any(route not in stage.teacher.routes for route in term.routes)
    return key[2] in term.routes


def _dotted(key: KeyPath) -> str:
    return ".".join(map(str, key))


def _word(value: object) -> str:
    return "left out" if value is None else str(value)
