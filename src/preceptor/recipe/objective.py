"""Specs of the objective: a weighted sum of terms, each summed over targets and divided by N."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator

from preceptor.recipe.base import Names, NotNegative, Positive, Spec, Whole1, broken_rule, choice, real, wanted

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "skew_kl")
LAYER_MAPS = ("auto", "uniform", "last", "assign")
HEAD_MAPS = ("auto", "identity", "assign")


class TermSpec(Spec):
    """What every term has."""

    weight: NotNegative = 1.0
    """Multiplies the term; at 0 it is measured and not minimised."""
    routes: Names | None = None
    """Datasets whose rows the term covers; None is all of them. N does not change."""


class NextTokenSpec(TermSpec):
    """Cross-entropy with the next token of the data."""

    kind: Literal["next_token"] = "next_token"


class LogitsSpec(TermSpec):
    """Divergence between the teacher's and the student's next-token distributions."""

    kind: Literal["logits"] = "logits"
    divergence: Annotated[Literal["forward_kl", "reverse_kl", "jsd", "skew_kl"], choice(*DIVERGENCES)] = "forward_kl"
    """What is minimised; the equations are in losses.md."""
    temperature: Positive = 1.0
    """Divides both models' logits; the value carries the factor temperature²."""
    beta: Annotated[float, real(0.0, 1.0, above=True, below=True)] = 0.5
    """Share of the teacher in the mixture of `jsd`; others ignore it."""
    alpha: Annotated[float, real(0.0, 1.0, above=True, below=True)] = 0.1
    """Share of the teacher in the mixture of `skew_kl`; others ignore it."""


def _layers(value: Any) -> str | tuple[tuple[int, int], ...]:
    if isinstance(value, str) and value in LAYER_MAPS:
        return value
    if isinstance(value, list | tuple) and value:
        pairs = [tuple(pair) if isinstance(pair, list | tuple) else () for pair in value]
        if all(len(pair) == 2 and all(type(i) is int and i >= 0 for i in pair) for pair in pairs):
            students = [pair[0] for pair in pairs]
            for layer in students:
                if students.count(layer) > 1:
                    raise broken_rule(f"names student layer {layer} twice; give each student layer one teacher layer")
            return tuple((pair[0], pair[1]) for pair in pairs)
    raise wanted("auto, uniform, last, assign, or a list of [student layer, teacher layer] pairs counted from 0")


class AttentionSpec(TermSpec):
    """KL between the teacher's and the student's attention maps at the target rows."""

    kind: Literal["attention"] = "attention"
    layers: Annotated[str | tuple[tuple[int, int], ...], PlainValidator(_layers)] = "auto"
    """Which teacher layer each student layer follows; `auto`: its own for equal depth, `uniform` otherwise."""
    heads: Annotated[Literal["auto", "identity", "assign"], choice(*HEAD_MAPS)] = "auto"
    """Which teacher head each student head follows; `auto`: its own for equal counts, `assign` otherwise."""
    calibration_rows: Whole1 = 32
    """Rows on which an assignment of heads or layers is measured."""


class RouterBalanceSpec(Spec):
    """Load balancing of a mixture of experts (arXiv 2101.03961, equation 4), over all its tokens."""

    kind: Literal["router_balance"] = "router_balance"
    weight: NotNegative = 0.01
    """Multiplies the term, as `router_aux_loss_coef` of transformers does."""
    routes: ClassVar[None] = None


Term = Annotated[NextTokenSpec | LogitsSpec | AttentionSpec | RouterBalanceSpec, Field(discriminator="kind")]
TERMS: dict[str, type[Spec]] = {
    "next_token": NextTokenSpec,
    "logits": LogitsSpec,
    "attention": AttentionSpec,
    "router_balance": RouterBalanceSpec,
}
TAUGHT = ("logits", "attention")
"""Kinds of terms that follow a teacher."""
