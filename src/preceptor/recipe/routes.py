"""Specs of several teachers at once: which of them a row follows."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from preceptor.recipe.base import KeyPath, Positive, Spec, broken_rule, wanted
from preceptor.recipe.models import Model, ModelSpec


class ShareSpec(Spec):
    """One of several teachers of a route."""

    model: Model
    weight: Positive
    """Its share of what the route's rows follow; a route's shares sum to 1."""


def _shares(value: Any) -> Any:
    """A route's teachers: a model stands for the list of it alone."""
    return value if isinstance(value, list) else [{"model": value, "weight": 1.0}]


def _routes(value: Any) -> Any:
    if not isinstance(value, dict) or not value:
        raise wanted("a mapping from routes to teachers, such as {shop: stage:expert, general: stage:kd}")
    return value


Route = Annotated[list[ShareSpec], BeforeValidator(_shares), Field(min_length=1)]


class RoutesSpec(Spec):
    """Teachers by route: a row follows the teacher of its route, and no other teacher is run on it.

    A row's route is its dataset's name, or the value of the column that the dataset's `route` names.
    """

    routes: Annotated[dict[str, Route], BeforeValidator(_routes)]
    default: Model | None = None
    """The teacher of routes that `routes` does not name."""

    @model_validator(mode="after")
    def _whole_shares(self) -> RoutesSpec:
        for name, teachers in self.routes.items():
            total = sum(each.weight for each in teachers)
            if abs(total - 1) > 1e-6:
                raise broken_rule(
                    f"the weights of the teachers of route {name} sum to {total:g}; change them so that they sum to 1"
                )
        return self

    def models(self) -> dict[KeyPath, ModelSpec]:
        """Every teacher by its key path inside this spec."""
        found: dict[KeyPath, ModelSpec] = {}
        for name, teachers in self.routes.items():
            for index, each in enumerate(teachers):
                key: KeyPath = ("routes", name) if len(teachers) == 1 else ("routes", name, index, "model")
                found[key] = each.model
        return found | ({} if self.default is None else {("default",): self.default})


def _kind_of_teacher(value: Any) -> str:
    return "several" if isinstance(value, RoutesSpec) or (isinstance(value, dict) and "routes" in value) else "one"


Teacher = Annotated[
    Annotated[Model, Tag("one")] | Annotated[RoutesSpec, Tag("several")], Discriminator(_kind_of_teacher)
]
