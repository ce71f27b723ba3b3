"""Specs of the stages that use a model: to write rows, or to score it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Tag, model_validator

from preceptor.recipe.base import (
    NAME,
    NAME_RULE,
    Names,
    Spec,
    Text,
    Whole1,
    Whole2,
    broken_rule,
    real,
    stage_of,
    wanted,
    whole,
)
from preceptor.recipe.models import Model, ModelSpec


class GenerateStage(Spec):
    """A model writes rows: answers to a dataset's prompts, or text from the beginning-of-sequence token."""

    kind: Literal["generate"]
    model: Model
    prompts: Text | None = None
    """A dataset whose prompts are answered; None writes from the beginning of a sequence."""
    rows: Whole1
    """How many rows to write."""
    max_new_tokens: Whole1 = 256
    temperature: Annotated[float, real(0.0)] = 1.0
    """0 takes the most probable token each time."""
    top_p: Annotated[float, real(0.0, 1.0, above=True)] = 1.0
    batch_size: Whole1 = 32
    """Rows written at once; changes speed and memory only."""


def _scored(value: Any) -> Any:
    if isinstance(value, list | dict) and value:
        return value
    raise wanted("a list of models, or a mapping from names to models")


def _short_name(model: ModelSpec) -> str:
    """What a model is called where no name is given: the stage, or the last part of the path."""
    return stage_of(model.adapter or model.path) or (model.adapter or model.path).rstrip("/").rpartition("/")[2]


class EvaluateStage(Spec):
    """Scores of models on held-out rows: what was gained in the domain, what was forgotten elsewhere."""

    kind: Literal["evaluate"]
    models: Annotated[
        Annotated[list[Model], Tag("list")] | Annotated[dict[str, Model], Tag("mapping")],
        Discriminator(lambda value: "list" if isinstance(value, list) else "mapping"),
        BeforeValidator(_scored),
    ]
    """Names come from the mapping, else from the stage or the last part of the path."""
    reference: Model | None = None
    """The model whose general ability is to be kept; scored as well."""
    expert: Model | None = None
    """The model whose domain ability is to be gained; scored as well."""
    on: Names
    """Datasets whose `test` rows, or else whose holdout, are scored."""
    rows: Whole1 | None = None
    """At most so many rows of each dataset, the same for all models; None is all."""
    max_length: Whole2 = 2048
    """Tokens per row after templating."""
    max_new_tokens: Whole1 = 64
    batch_size: Whole1 = 32
    """Rows scored at once; changes speed and memory only."""
    resamples: Annotated[int, whole(100)] = 1000
    """Bootstrap resamples of each interval."""

    @model_validator(mode="after")
    def _consistent(self) -> EvaluateStage:
        if isinstance(self.models, list):
            names = [_short_name(model) for model in self.models]
            for name in names:
                if names.count(name) > 1:
                    raise broken_rule(
                        f"has two models called {name!r}; write models as a mapping from names of your choice"
                    )
        for name in self.on:
            if self.on.count(name) > 1:
                raise broken_rule(f"names {name!r} twice in `on`, whose rows would count twice; name it once")
        spelled: dict[str, str] = {}
        for name in self.named:
            other = spelled.setdefault(name.lower(), name)
            if other != name:
                raise broken_rule(
                    f"has models called {other!r} and {name!r}, whose predictions would be one file on some systems; "
                    "give them names that differ in more than capitals"
                )
            if not NAME.fullmatch(name):
                raise broken_rule(f"has a model called {name!r}; give it {NAME_RULE}, in a mapping")
        if self.expert is not None and self.reference is None:
            raise broken_rule("has `expert` without `reference`, between which recovery is measured; add `reference`")
        return self

    @property
    def named(self) -> dict[str, ModelSpec]:
        """Every model that is scored, by name: the reference and the expert are among them."""
        found = self.models if isinstance(self.models, dict) else {_short_name(model): model for model in self.models}
        scored = dict(found)
        for role, model in (("reference", self.reference), ("expert", self.expert)):
            if model is not None and model not in scored.values():
                names = (_short_name(model), role, *(f"{role}.{number}" for number in range(2, len(scored) + 3)))
                scored[next(name for name in names if name not in scored)] = model
        return scored

    def name_of(self, model: ModelSpec | None) -> str | None:
        """The name under which the reference or the expert is scored."""
        return next((name for name, each in self.named.items() if each == model), None)
