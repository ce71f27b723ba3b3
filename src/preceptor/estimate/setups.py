"""What a training step is made of, described without weights: models by their configs, rows by their tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, TrainingArguments

    from preceptor.data.chat import EncodedRow
    from preceptor.objective import Term
    from preceptor.recipe import LoraSpec

STUDENT = "student"
"""The base of a teacher that works on the student's own weights."""


@dataclass(frozen=True)
class ModelSetup:
    """A causal language model by its config, and the dtype of its plain parameters.

    `quantization` is what a recipe says of it; `packed_bytes` are the weights' bytes of a checkpoint that is quantised
    already.
    """

    config: PreTrainedConfig
    dtype: torch.dtype
    quantization: Mapping[str, Any] | None = None
    trust_remote_code: bool = False
    packed_bytes: int | None = None


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher that is run: a base model by its key (or `STUDENT`) and a PEFT config, or None for the bare base."""

    base: str
    adapter: Any | None = None


@dataclass(frozen=True)
class StoredSetup:
    """A teacher that is read from a store."""

    mode: str
    vocabulary: int
    temperature: float = 1.0
    draws: int = 50
    k: int = 64


@dataclass(frozen=True)
class Setup:
    """One training stage on one device.

    Args:
        student: in the dtype that is trained.
        arguments: how it is trained: precision, checkpointing, optimiser.
        terms: makes the objective's terms.
        route_names, vocabulary: as for `Objective`.
        batch: the rows of a micro-batch, of which there are `accumulation` in a step.
        pad_token_id, packing, max_length: as for `Collator`.
        lora: the adapter that is trained, if one is.
        bases: models that teachers are made of, by key.
        teachers: by key.
        routes: by route, keys of teachers with their weights; None where the only teacher teaches all.
        default: key of the teacher of other routes.
        held_out: rows of one batch of held-out rows, if any are measured.
        stored_dtype: of the student's checkpoint: it is saved in it, and teachers on its weights compute in it.
    """

    student: ModelSetup
    arguments: TrainingArguments
    terms: Callable[[], Sequence[Term]]
    route_names: tuple[str, ...]
    vocabulary: int | None
    batch: tuple[EncodedRow, ...]
    accumulation: int = 1
    pad_token_id: int = 0
    packing: bool = False
    max_length: int | None = None
    lora: LoraSpec | None = None
    bases: Mapping[str, ModelSetup] = field(default_factory=dict)
    teachers: Mapping[str, LiveTeacher | StoredSetup] = field(default_factory=dict)
    routes: Mapping[str, tuple[tuple[str, float], ...]] | None = None
    default: str | None = None
    held_out: tuple[EncodedRow, ...] = ()
    stored_dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class StoreSetup:
    """A teacher that is run on `batch` rows at once, whose predictions over `vocabulary` tokens are kept."""

    teacher: ModelSetup
    adapter: Any | None
    batch: tuple[EncodedRow, ...]
    vocabulary: int
    pad_token_id: int = 0
