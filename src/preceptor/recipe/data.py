"""Specs of datasets: where rows come from and which of them count."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from preceptor.recipe.base import Spec, Text, TextOrList, Whole2, choice, one_or_many, stage_of, wanted

FORMATS = ("jsonl", "json", "csv", "parquet", "text", "hub")
Format = Literal["jsonl", "json", "csv", "parquet", "text", "hub"]


def _holdout(value: Any) -> int | str:
    if value == "all" or (type(value) is int and value >= 0):
        return value  # type: ignore[no-any-return]
    raise wanted("a whole number of at least 0, or all")


class DatasetSpec(Spec):
    """One entry of `data:`."""

    path: TextOrList
    """A file, a list of files, a Hub id, or `stage:NAME` of a `generate` stage."""
    split: Text = "train"
    """Split of a Hub dataset."""
    revision: Text | None = None
    """Branch, tag or commit of a Hub dataset."""
    format: Annotated[Format, choice(*FORMATS)] | None = None
    """Format of the files; None: as their names end."""
    columns: dict[str, str] | None = None
    """Our column name → the name the files use, where detection does not find it."""
    holdout: Annotated[int | Literal["all"], PlainValidator(_holdout)] = 0
    """Rows kept out of training for evaluation: those with the smallest sha256 of seed and prompt; or `all` of them."""
    test: TextOrList | None = None
    """Separate evaluation rows."""
    where: dict[str, Any] = Field(default_factory=dict)
    """Keep only rows whose column equals the value (or one of a list of values)."""
    route: Text | None = None
    """The column whose value is a row's route; None: the dataset's name is the route of all its rows."""
    role: Annotated[Literal["domain", "general"], choice("domain", "general")] | None = None
    """Which score its rows count under; None: general."""
    max_length: Whole2 | None = None
    """Tokens per row after templating, where it differs from the stage's."""
    metric: Annotated[Literal["exact", "accuracy", "rougeL"], choice("exact", "accuracy", "rougeL")] | None = None
    """How answers to rows are scored that have no `metric` column of their own; None: by likelihood alone."""
    targets: Annotated[Literal["assistant", "all"], choice("assistant", "all")] | None = None
    """Which tokens are targets; None means `assistant`, or `all` for plain text rows."""
    allow_drops: bool = False
    """Accept a dataset that loses more than half of its rows; otherwise that is an error."""

    @property
    def stages(self) -> list[str]:
        """The stages that write some of its rows, training or test."""
        texts = [*one_or_many(self.path), *one_or_many(self.test)]
        return [source for text in texts if (source := stage_of(text)) is not None]


class OverlapSpec(Spec):
    """What to do when one prompt occurs in two datasets of the recipe; without it that is an error."""

    drop_from: TextOrList
    """The dataset that loses its copies, or a list of them: of two that share a prompt the first named loses it."""

    @property
    def losers(self) -> list[str]:
        """The datasets that lose rows to others, the first named first."""
        return [self.drop_from] if isinstance(self.drop_from, str) else list(self.drop_from)
