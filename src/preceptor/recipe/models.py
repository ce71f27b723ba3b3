"""Specs of models and of the low-rank adapters trained on them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainValidator

from preceptor.recipe.base import Names, Spec, Text, Whole1, choice, real, wanted

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def _device_map(value: Any) -> str | dict[str, Any] | None:
    if value is None or isinstance(value, str | dict):
        return value
    raise wanted("a word such as auto, or a mapping from module names to devices")


class ModelSpec(Spec):
    """A model: a folder, a Hub id or `stage:NAME`. In a recipe a bare string stands for its `path`."""

    path: Text
    """A folder, a Hub id, or `stage:NAME` of a stage that makes a model."""
    revision: Text | None = None
    """Branch, tag or commit of a Hub model."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16", "float64"], choice(*DTYPES)] | None = None
    """Parameters' type in memory; None is float32 for students and the checkpoint's for teachers."""
    quantization: dict[str, Any] | None = None
    """Keys of the transformers quantisation config, with `quant_method`, `load_in_4bit` or `load_in_8bit`."""
    adapter: Text | None = None
    """A PEFT adapter on top: a folder, a Hub id or `stage:NAME` of a stage with `lora`."""
    device_map: Annotated[str | dict[str, Any] | None, PlainValidator(_device_map)] = None
    """Where the weights are: a word such as auto, or a device for each module; a teacher's may be cpu and disk."""
    sharded: bool | None = None
    """Of a teacher: whether all processes hold it together, a part each, or each a whole copy; None: as the student."""
    trust_remote_code: bool = False
    """Runs Python that comes with the model; off unless written here."""

    @property
    def title(self) -> str:
        """What logs and cards call it."""
        return self.path if self.adapter is None else f"{self.path} with {self.adapter}"


def _model(value: Any) -> Any:
    if isinstance(value, str):
        return {"path": value}
    if isinstance(value, dict | ModelSpec):
        return value
    raise wanted("a folder, a Hub id, `stage:NAME`, or a mapping with `path`")


Model = Annotated[ModelSpec, BeforeValidator(_model)]


def _target_modules(value: Any) -> str | list[str]:
    if value == "all-linear" or (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
        return value  # type: ignore[no-any-return]
    raise wanted("all-linear or a list of module names")


class LoraSpec(Spec):
    """Low-rank adaptation (arXiv 2106.09685): W + alpha/r · B·A, with A of r rows."""

    r: Whole1 = 16
    """Rank: rows of A. More learn more and take more memory."""
    alpha: Whole1 | None = None
    """The update is multiplied by alpha/r; None: 2·r."""
    dropout: Annotated[float, real(0.0, 1.0, below=True)] = 0.0
    """Share of the adapter's inputs that are zeroed while it learns."""
    target_modules: Annotated[str | list[str], PlainValidator(_target_modules)] = "all-linear"
    """Which modules get an adapter: all linear layers but the head, or those of the given names."""
    modules_to_save: Names | None = None
    """Modules trained whole beside the adapter (embeddings, head)."""
