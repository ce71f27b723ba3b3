"""The models of a recipe as a simulated step needs them: configs and dtypes, also of models that are yet to be made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from preceptor.errors import InputError, first_sentence
from preceptor.estimate.setups import ModelSetup
from preceptor.models.checkpoint import CONFIG, Checkpoint, check_model
from preceptor.models.quantization import by_bitsandbytes
from preceptor.recipe import (
    ComposeStage,
    DistillStage,
    InitStage,
    MergeStage,
    ModelSpec,
    SftStage,
    TrainTokenizerSpec,
)
from preceptor.recipe.base import stage_of
from preceptor.stages.build import lora_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from preceptor.stages.context import StageContext


class UnknownError(Exception):
    """What keeps something from being predicted; its text follows "unknown: "."""


@dataclass(frozen=True)
class Described:
    """A model as it is stored, or will be.

    Args:
        base: tells whether two are the same weights.
        config, dtype: of the base.
        adapter: PEFT config of an adapter beside it.
        packed_bytes: of a checkpoint that is quantised already.
    """

    base: str
    config: PreTrainedConfig
    dtype: torch.dtype
    adapter: Any | None = None
    packed_bytes: int | None = None


def look(spec: ModelSpec) -> Checkpoint:
    """The checkpoint of a resolved model, whether or not this machine could quantise it or has its devices.

    Raises:
        InputError: as `check_model`.
    """
    return check_model(spec.model_copy(update={"quantization": None, "device_map": None}))


def config_alone(spec: ModelSpec) -> Path | None:
    """The folder of a resolved model that has a config and no weights yet, of any kind."""
    folder = Path(spec.path)
    kinds = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
    if not (folder / CONFIG).is_file() or any(any(folder.glob(kind)) for kind in kinds):
        return None
    return folder


class Sources:
    """Describes models of a recipe.

    Args:
        context: of the stage that reads them.
        done: stages that are finished.
        tokenizer: the tokenizer of a model, None while it is not there.
    """

    def __init__(
        self, context: StageContext, done: set[str], tokenizer: Callable[[ModelSpec], PreTrainedTokenizerBase | None]
    ) -> None:
        self._context, self._done, self._tokenizer = context, done, tokenizer

    def setup(self, spec: ModelSpec, *, student: bool) -> ModelSetup:
        """The model as it is loaded; a student's adapter is merged into its weights.

        Raises:
            UnknownError: its config cannot be had.
        """
        found = self.describe(spec)
        dtype = found.dtype
        if spec.dtype not in (None, "auto"):
            dtype = getattr(torch, str(spec.dtype))
        elif student and spec.dtype is None and (spec.quantization is None or by_bitsandbytes(spec)):
            dtype = torch.float32
        return ModelSetup(found.config, dtype, spec.quantization, spec.trust_remote_code, found.packed_bytes)

    def describe(self, spec: ModelSpec) -> Described:
        """Raises UnknownError."""
        source = stage_of(spec.path)
        if source is not None and source not in self._done:
            found = self._unmade(source)
        else:
            found = self._made(self._context.resolve_model(spec.model_copy(update={"adapter": None})))
        if spec.adapter is None:
            return found
        source = stage_of(spec.adapter)
        if source is None or source in self._done:
            resolved = self._context.resolve_model(spec)
            assert resolved.adapter is not None
            return replace(found, adapter=_adapter(resolved.adapter))
        stage = self._context.recipe.stages[source]
        assert isinstance(stage, SftStage | DistillStage)
        assert stage.lora is not None
        return replace(found, adapter=lora_config(stage.lora))

    def _made(self, resolved: ModelSpec) -> Described:
        from transformers import AutoConfig

        adapter = None if resolved.adapter is None else _adapter(resolved.adapter)
        folder = Path(resolved.path)
        if not folder.is_dir():
            return replace(self._on_the_hub(resolved), adapter=adapter)
        # Before transformers reads the config: some make a list as long as the number of layers it says.
        alone = config_alone(resolved) is not None
        checkpoint = None if alone else look(resolved.model_copy(update={"adapter": None}))
        try:
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=resolved.trust_remote_code)
        except Exception as error:  # whatever a config of odd values is refused with, and by whom
            raise UnknownError(f"the config of {resolved.path} cannot be read ({first_sentence(error)})") from error
        if checkpoint is None:
            return Described(str(folder), config, config.dtype or torch.float32, adapter)
        quantized = isinstance(checkpoint.config.get("quantization_config"), dict)
        size = sum(tensor.bytes for tensor in checkpoint.tensors.values()) if quantized else None
        return Described(str(folder), config, checkpoint.dtype, adapter, size)

    def _on_the_hub(self, resolved: ModelSpec) -> Described:
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(
                resolved.path, revision=resolved.revision, trust_remote_code=resolved.trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise UnknownError(f"the config of {resolved.path} is not here ({first_sentence(error)})") from error
        return Described(f"{resolved.path}@{resolved.revision}", config, config.dtype or torch.float32)

    def _unmade(self, name: str) -> Described:
        """The model that a stage will write."""
        stage = self._context.recipe.stages[name]
        base = f"stage:{name}"
        if isinstance(stage, InitStage):
            return Described(base, self._initial(name, stage), getattr(torch, stage.dtype))
        if isinstance(stage, SftStage | DistillStage):
            found = self.describe(stage.student if isinstance(stage, DistillStage) else stage.model)
            if stage.lora is not None:
                return replace(found, adapter=lora_config(stage.lora))
            return replace(found, base=base, adapter=None)
        if isinstance(stage, MergeStage):
            return replace(self.describe(stage.models[0]), base=base, adapter=None)
        if isinstance(stage, ComposeStage):
            return self._composed(base, stage)
        raise UnknownError(f"stage {name} has yet to run")

    def _initial(self, name: str, stage: InitStage) -> PreTrainedConfig:
        from preceptor.stages.init import build_config

        keys, known = dict(stage.config), None
        if "vocab_size" not in keys and isinstance(stage.tokenizer, TrainTokenizerSpec):
            keys["vocab_size"] = stage.tokenizer.vocab_size  # at most
        elif "vocab_size" not in keys and isinstance(stage.tokenizer, str):
            known = self._tokenizer(ModelSpec(path=stage.tokenizer))
            source = stage_of(stage.tokenizer)
            if known is None and source is not None:
                keys["vocab_size"] = self._unmade(source).config.vocab_size
        return build_config(keys, known, f"stages.{name}")

    def _composed(self, base: str, stage: ComposeStage) -> Described:
        from preceptor.models.sparse import SPARSE, mixture_config

        first = self.describe(stage.experts[0])
        kind = SPARSE.get(str(first.config.model_type))
        if kind is None:
            raise UnknownError(f"{base} is composed of {first.config.model_type} models")
        config = mixture_config(
            first.config, kind, experts=len(stage.experts), experts_per_token=stage.experts_per_token
        )
        dtype = first.dtype if stage.dtype is None else getattr(torch, stage.dtype)
        return Described(base, config, dtype)


def _adapter(folder: str) -> Any:
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, json.JSONDecodeError) as error:
        raise UnknownError(f"the config of adapter {folder} cannot be read ({first_sentence(error)})") from error


def why(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, UnknownError | InputError):
        return " ".join(str(error).split())
    said = first_sentence(error)
    return said if said == type(error).__name__ else f"{type(error).__name__}: {said}"
