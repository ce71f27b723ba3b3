"""Specs of the stages that make a model without training: from a config, or from other models' weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainValidator, model_validator

from preceptor.recipe.base import (
    Names,
    NotNegative,
    Spec,
    Text,
    TextOrList,
    Whole1,
    Whole2,
    broken_rule,
    choice,
    real,
    wanted,
)
from preceptor.recipe.models import DTYPES, Model, ModelSpec


class TrainTokenizerSpec(Spec):
    """A tokenizer trained on the training rows of named datasets (held-out rows are not seen)."""

    kind: Annotated[Literal["bpe", "characters"], choice("bpe", "characters")] = "bpe"
    """`bpe`: byte pairs, as in GPT-2; `characters`: one token for each character."""
    train_on: TextOrList
    """The dataset whose text it learns, or a list of them."""
    vocab_size: Whole2
    """Upper bound, special tokens included."""


def _config(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("model_type"), str):
        raise wanted("a mapping of transformers config keys with at least `model_type: NAME`")
    return value


def _tokenizer(value: Any) -> Any:
    if value is None or isinstance(value, str | dict | TrainTokenizerSpec):
        return value
    raise wanted("a folder, a Hub id, `stage:NAME`, or {train_on: DATASET, vocab_size: N}")


class InitStage(Spec):
    """A model with random weights from a config block and the recipe's seed."""

    kind: Literal["init"]
    config: Annotated[dict[str, Any], PlainValidator(_config)]
    """Keys of a transformers model config; `model_type` names the architecture."""
    tokenizer: Annotated[Text | TrainTokenizerSpec | None, BeforeValidator(_tokenizer)] = None
    """An existing tokenizer, or one trained here; None: a model without one."""
    chat_template: Text | None = None
    """Path of a Jinja file, or `default`; None: the tokenizer's own."""
    dtype: Annotated[Literal["float32", "bfloat16", "float16", "float64"], choice(*DTYPES[1:])] = "float32"
    """Type in which the weights are saved."""


def _sources(low: int, high: int | None = None) -> BeforeValidator:
    """Accepts a list of at least `low` and at most `high` models."""
    what = f"a list of {low} models" if low == high else f"a list of at least {low} models"

    def check(value: Any) -> Any:
        if not isinstance(value, list) or len(value) < low or (high is not None and len(value) > high):
            raise wanted(what)
        return value

    return BeforeValidator(check)


class ComposeStage(Spec):
    """A sparse mixture of experts whose experts are the MLPs of dense models of one shape."""

    kind: Literal["compose"]
    experts: Annotated[list[Model], _sources(2)]
    """Models of one shape; expert e of each layer is the MLP of the e-th."""
    base: Model | None = None
    """Where attention, norms, embeddings and head come from; None: the first expert. The word `average`: the
    mean of all experts."""
    experts_per_token: Whole1 = 1
    """Experts that work on each token; as many as there are makes the model dense."""
    router: Annotated[Literal["hidden", "random", "uniform"], choice("hidden", "random", "uniform")] | None = None
    """How routers begin; None is `hidden` where `prompts` are given and `random` otherwise."""
    prompts: Names | None = None
    """For `hidden`: one dataset per expert, in order, whose prompts that expert should attract."""
    prompt_rows: Whole1 = 64
    """Prompts of each dataset that are read for the routers' start."""
    noise: NotNegative = 0.0
    """Standard deviation of the noise on expert weights, relative to each tensor's own."""
    dtype: Annotated[Literal["float32", "bfloat16", "float16", "float64"], choice(*DTYPES[1:])] | None = None
    """Type in which the weights are saved; None is the first expert's."""

    @model_validator(mode="after")
    def _consistent(self) -> ComposeStage:
        count = len(self.experts)
        if self.experts_per_token > count:
            raise broken_rule(
                f"experts_per_token is {self.experts_per_token}, but there are {count} experts; write a number from 1 "
                f"to {count}"
            )
        if self.router == "hidden" and self.prompts is None:
            raise broken_rule("router is 'hidden', which needs `prompts`; name one dataset per expert")
        if self.prompts is None and "prompt_rows" in self.model_fields_set:
            raise broken_rule("has `prompt_rows` without `prompts`; name one dataset per expert, or leave it out")
        if self.prompts is not None and self.router not in (None, "hidden"):
            raise broken_rule(f"has `prompts`, which router {self.router!r} does not use; leave one of them out")
        if self.prompts is not None and len(self.prompts) != count:
            raise broken_rule(f"has {len(self.prompts)} prompts for {count} experts; name one dataset per expert")
        if self.averaged and self.base != ModelSpec(path="average"):
            raise broken_rule("base is the word `average`, the experts' mean, which has no keys; write base: average")
        return self

    @property
    def averaged(self) -> bool:
        """Whether attention, norms, embeddings and head are the experts' mean."""
        return self.base is not None and self.base.path == "average"


class MergeStage(Spec):
    """A model between two others of one shape."""

    kind: Literal["merge"]
    models: Annotated[list[Model], _sources(2, 2)]
    """The two models."""
    alpha: Annotated[float, real(0.0, 1.0)]
    """Share of the second model: 0 gives the first, 1 the second."""
    method: Annotated[Literal["linear", "slerp"], choice("linear", "slerp")] = "linear"
    """`slerp` goes along the arc between each pair of tensors instead of the chord."""
