"""Specs of several teachers at once: which of them a row follows."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Tag

from preceptor.recipe.base import KeyPath, Positive, Spec, broken_rule, wanted
from preceptor.recipe.models import Model, ModelSpec


class ShareSpec(Spec):
    """One of several teachers of a route."""

    model: Model
    """The teacher."""
    weight: Positive
    """Its share of what the route's rows follow; a route's shares sum to 1."""


def _shares(value: Any) -> Any:
    """A route's teachers: a model stands for the list of it alone."""
    if not isinstance(value, list):
        return [{"model": value, "weight": 1.0}]
    if not value or not all(isinstance(each, dict | ShareSpec) for each in value):
        raise wanted("a model, or a list such as [{model: stage:expert, weight: 0.5}, {model: stage:kd, weight: 0.5}]")
    return value


def _whole(teachers: list[ShareSpec]) -> list[ShareSpec]:
    total = sum(each.weight for each in teachers)
    if abs(total - 1) > 1e-6:
        raise broken_rule(f"the weights of its teachers sum to {total:g}; change them so that they sum to 1")
    return teachers


def _routes(value: Any) -> Any:
    if not isinstance(value, dict) or not value:
        raise wanted("a mapping from routes to teachers, such as {shop: stage:expert, general: stage:kd}")
    return value


Route = Annotated[list[ShareSpec], BeforeValidator(_shares), AfterValidator(_whole)]


class RoutesSpec(Spec):
    """Teachers by route: a row follows the teacher of its route, and no other teacher is run on it.

    A row's route is its dataset's name, or the value of the column that the dataset's `route` names.
    """

    routes: Annotated[dict[str, Route], BeforeValidator(_routes)]
    """Route → its teacher, or a list of teachers with weights that sum to 1."""
    default: Model | None = None
    """The teacher of routes that `routes` does not name."""

    def models(self) -> dict[KeyPath, ModelSpec]:
        """Every teacher by its key path inside this spec."""
        found: dict[KeyPath, ModelSpec] = {}
        for name, teachers in self.routes.items():
            for index, each in enumerate(teachers):
                key: KeyPath = ("routes", name) if len(teachers) == 1 else ("routes", name, index, "model")
                found[key] = each.model
        return found | ({} if self.default is None else {("default",): self.default})


def _kind_of_teacher(value: Any) -> str:
    keys = value if isinstance(value, dict) else {}
    routed = "routes" in keys or ("default" in keys and "path" not in keys)
    return "several" if isinstance(value, RoutesSpec) or routed else "one"


Teacher = Annotated[
    Annotated[Model, Tag("one")] | Annotated[RoutesSpec, Tag("several")], Discriminator(_kind_of_teacher)
]
