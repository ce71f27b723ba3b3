"""Spec of the stage that scores models: on rows, and by the suites of recipe/suites.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Tag, model_validator

from preceptor.recipe.base import (
    NAME,
    NAME_RULE,
    KeyPath,
    Names,
    Spec,
    Whole1,
    Whole2,
    broken_rule,
    stage_of,
    wanted,
    whole,
)
from preceptor.recipe.models import Model, ModelSpec
from preceptor.recipe.suites import AlpacaEvalSpec, EndpointSpec, MtBenchSpec, TasksSpec


def _list_or_mapping(value: Any) -> Any:
    if isinstance(value, list | dict) and value:
        return value
    raise wanted("a list of models, or a mapping from names to models")


def _kind_of(value: Any) -> str:
    """The tag of a union: no word that is a key, or a message would take it for one."""
    given = isinstance(value, EndpointSpec) or (isinstance(value, dict) and "endpoint" in value)
    return "served" if given else "loaded"


Scored = Annotated[Annotated[Model, Tag("loaded")] | Annotated[EndpointSpec, Tag("served")], Discriminator(_kind_of)]
"""What answers: a model that is loaded here, or one that is served."""


def _short_name(model: ModelSpec | EndpointSpec) -> str:
    """What a model is called where no name is given: the stage, or the last part of the path."""
    path = model.model if isinstance(model, EndpointSpec) else model.adapter or model.path
    return stage_of(path) or path.rstrip("/").rpartition("/")[2]


class EvaluateStage(Spec):
    """Scores of models: what was gained in the domain, what was forgotten elsewhere, how well they answer."""

    kind: Literal["evaluate"]
    models: Annotated[
        Annotated[list[Scored], Tag("list")] | Annotated[dict[str, Scored], Tag("mapping")],
        Discriminator(lambda value: "list" if isinstance(value, list) else "mapping"),
        BeforeValidator(_list_or_mapping),
    ] = {}  # noqa: RUF012 - pydantic copies defaults
    """Names come from the mapping, else from the stage or the last part of the path."""
    reference: Model | None = None
    """The model whose general ability is to be kept; scored as well."""
    expert: Model | None = None
    """The model whose domain ability is to be gained; scored as well."""
    on: Names | None = None
    """Datasets whose `test` rows, or else whose holdout, are scored."""
    mt_bench: MtBenchSpec | None = None
    """Answers to MT-Bench's questions, and a judge's grades of them."""
    alpaca_eval: AlpacaEvalSpec | None = None
    """Answers to AlpacaEval's instructions, and how often a judge prefers them to a baseline's."""
    tasks: TasksSpec | None = None
    """Tasks of lm-evaluation-harness."""
    rows: Whole1 | None = None
    """At most so many rows of each dataset, the same for all models; None is all."""
    max_length: Whole2 = 2048
    """Tokens per row after templating."""
    max_new_tokens: Whole1 = 64
    """Tokens of a written answer, for rows scored by `exact` or `rougeL`."""
    batch_size: Whole1 = 32
    """Rows scored at once; changes speed and memory only."""
    resamples: Annotated[int, whole(100)] = 1000
    """Bootstrap resamples of each interval."""

    @model_validator(mode="after")
    def _consistent(self) -> EvaluateStage:
        for rule in (_measures_something, _names_differ, _endpoints_only_answer):
            for broken in rule(self):
                raise broken_rule(broken)
        return self

    @property
    def datasets(self) -> list[str]:
        """The datasets of `on`."""
        return self.on or []

    @property
    def has_suites(self) -> bool:
        """Whether models are scored by more than rows."""
        return any(getattr(self, suite) is not None for suite in FILES)

    @property
    def named(self) -> dict[str, ModelSpec]:
        """Every model that is loaded and scored, by name: the reference and the expert are among them."""
        scored = {name: model for name, model in self._given.items() if isinstance(model, ModelSpec)}
        for role, model in (("reference", self.reference), ("expert", self.expert)):
            if model is not None and model not in scored.values():
                names = (_short_name(model), role, *(f"{role}.{number}" for number in range(2, len(scored) + 3)))
                scored[next(name for name in names if name not in scored)] = model
        return scored

    @property
    def served(self) -> dict[str, EndpointSpec]:
        """The models that answer behind an endpoint, by name."""
        return {name: model for name, model in self._given.items() if isinstance(model, EndpointSpec)}

    @property
    def _given(self) -> dict[str, ModelSpec | EndpointSpec]:
        return self.models if isinstance(self.models, dict) else {_short_name(model): model for model in self.models}

    def name_of(self, model: ModelSpec | None) -> str | None:
        """The name under which the reference or the expert is scored."""
        return next((name for name, each in self.named.items() if each == model), None)

    @property
    def files(self) -> dict[KeyPath, str]:
        """The files of the suites, by their key paths: questions, prompts, answers of other models."""
        found: dict[KeyPath, str] = {}
        for suite, keys in FILES.items():
            spec = getattr(self, suite)
            for key in keys if spec is not None else ():
                value = getattr(spec, key)
                if isinstance(value, str):
                    found[suite, key] = value
                else:
                    several = value.items() if isinstance(value, dict) else enumerate(value or ())
                    found |= {(suite, key, each): text for each, text in several}
        return found


FILES = {
    "mt_bench": ("questions", "prompts", "references", "answers", "judgments"),
    "alpaca_eval": ("baseline", "prompt", "outputs", "annotations"),
    "tasks": ("include",),
}
"""Which keys of the suites name files."""


def _measures_something(stage: EvaluateStage) -> Iterator[str]:
    if stage.on is None and stage.mt_bench is None and stage.alpaca_eval is None and stage.tasks is None:
        yield "has nothing to score models on; add `on: [DATASET]`, `mt_bench`, `alpaca_eval` or `tasks`"
    if not stage.named and not stage.served:
        others = (
            *(stage.mt_bench.answers if stage.mt_bench else ()),
            *(stage.mt_bench.judgments if stage.mt_bench else ()),
            *(stage.alpaca_eval.outputs if stage.alpaca_eval else ()),
            *(stage.alpaca_eval.annotations if stage.alpaca_eval else ()),
        )
        if stage.on is not None or stage.tasks is not None or not others:
            yield "has no `models`; write a list of models, or a mapping from names to models"
    if stage.expert is not None and stage.reference is None:
        yield "has `expert` without `reference`, between which recovery is measured; add `reference`"


def _names_differ(stage: EvaluateStage) -> Iterator[str]:
    if isinstance(stage.models, list):
        names = [_short_name(model) for model in stage.models]
        for name in names:
            if names.count(name) > 1:
                yield f"has two models called {name!r}; write models as a mapping from names of your choice"
    for name in stage.datasets:
        if stage.datasets.count(name) > 1:
            yield f"names {name!r} twice in `on`, whose rows would count twice; name it once"
    mt_bench, alpaca_eval = stage.mt_bench, stage.alpaca_eval
    own = [*stage.named, *stage.served]
    others = [
        *(("mt_bench.answers", name) for name in (mt_bench.answers if mt_bench else ())),
        *(("alpaca_eval.outputs", name) for name in (alpaca_eval.outputs if alpaca_eval else ())),
        *(("alpaca_eval.annotations", name) for name in (alpaca_eval.annotations if alpaca_eval else ())),
    ]
    for key, name in others:
        if name in own:
            yield f"has a model called {name!r} in {key} and in `models`; call one of them otherwise"
    spelled: dict[str, str] = {}
    for name in (*own, *dict.fromkeys(name for _, name in others)):
        other = spelled.setdefault(name.lower(), name)
        if other != name:
            yield (
                f"has models called {other!r} and {name!r}, whose predictions would be one file on some systems; "
                "give them names that differ in more than capitals"
            )
        if not NAME.fullmatch(name):
            yield f"has a model called {name!r}; give it {NAME_RULE}, in a mapping"


def _endpoints_only_answer(stage: EvaluateStage) -> Iterator[str]:
    for name in stage.served:
        for key in ("on", "tasks"):
            if getattr(stage, key) is not None:
                yield (
                    f"has the endpoint {name!r} among models that `{key}` scores by their likelihoods, which an "
                    "endpoint does not give; put it into an evaluate stage of its own, with mt_bench or alpaca_eval"
                )
