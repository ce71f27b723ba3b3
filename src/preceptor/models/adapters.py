"""PEFT adapters on base weights: loaded with every name accounted for, several on one base, or merged into it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from preceptor.errors import InputError, first_sentence, shown
from preceptor.models.checkpoint import ADAPTER_WEIGHTS
from preceptor.models.headers import TensorInfo, read_header
from preceptor.models.offload import is_offloaded

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

# Loading fails in one of these ways when the files or the settings are wrong (sizes of 0 divide, lists have no
# `.get`). Others are defects and stay visible.
LOADING_ERRORS = (
    ImportError, OSError, ValueError, RuntimeError, TypeError, LookupError, ArithmeticError, AttributeError,
    SafetensorError,
)  # fmt: skip
# Of these kinds PEFT reads more than the folder that the recipe names: other adapters, or a tokenizer with its code.
_ELSEWHERE = ("XLORA",)


def put_adapter(model: PreTrainedModel | PeftModel, folder: Path, given: str, *, name: str = "default") -> PeftModel:
    """`model` with the adapter in `folder` beside its weights, frozen, under `name`; active if it is the first.

    Args:
        model: a base model, or one that has adapters of other names already.
        folder: of the adapter's files.
        given: how messages call it.
        name: PEFT's name for it.

    Raises:
        InputError: an adapter of another base, or one that adds prompt tokens.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    where = f"adapter {given!r}"
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    tensors = read_header(folder / ADAPTER_WEIGHTS, where)
    stored = set(tensors)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning:
            raise InputError(
                f"{where}: is of kind {config.peft_type}, which adds prompt tokens; "
                "only adapters that change layers (LoRA and its relatives) are accepted"
            )
        if str(getattr(config.peft_type, "value", config.peft_type)) in _ELSEWHERE:
            raise InputError(
                f"{where}: is of kind {config.peft_type}, which reads other adapters that it names; "
                "only adapters that change layers (LoRA and its relatives) are accepted"
            )
        _check_ranks(config, tensors, where)
        config.inference_mode = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missing names are an error below
            if isinstance(model, PeftModel):
                wrapped, training = model, model.training
                wrapped.load_adapter(str(folder), name, is_trainable=False, autocast_adapter_dtype=False)
                wrapped.train(training)  # PEFT leaves it in evaluation mode, and it may be a student
            else:
                wrapped = PeftModel.from_pretrained(
                    model, str(folder), adapter_name=name, config=config, autocast_adapter_dtype=False
                )
        # A student's checkpoint takes its teachers' adapters along, and PEFT asks the Hub for a base it does not find.
        wrapped.peft_config[name].base_model_name_or_path = base.name_or_path
    except torch.OutOfMemoryError:
        raise
    except InputError:
        raise
    except LOADING_ERRORS as error:
        if is_offloaded(base):
            raise InputError(
                f"{where}: could not be put on the model {base.name_or_path!r}, whose `device_map` leaves weights in "
                f"main memory or on disk until they are used ({first_sentence(error)}); leave the `device_map` out, or "
                "merge the adapter into the model first"
            ) from error
        raise InputError(
            f"{where}: does not fit the model {base.name_or_path!r} ({_shape_clash(error)}); "
            "give the base model it was trained on"
        ) from error
    # PEFT only warns when the names differ, and the adapter then does nothing or half of what it should.
    expected = set(get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False))
    wrong = _first(expected - stored) or _first(key for key in stored - expected if "lora" in key)
    if wrong is not None:
        whose = "lacks" if wrong in expected else "has"
        raise InputError(
            f"{where}: does not fit the model {base.name_or_path!r} (it {whose} {wrong!r}); "
            "give the base model it was trained on"
        )
    return wrapped


def _check_ranks(config: PeftConfig, tensors: Mapping[str, TensorInfo], where: str) -> None:
    """Refuses ranks for which the stored weights are too small: PEFT makes matrices of them before it reads any."""
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    pattern = getattr(config, "rank_pattern", None)
    ranks = [getattr(config, "r", None), *(pattern.values() if isinstance(pattern, dict) else ())]
    for rank in ranks:
        if rank is not None and (type(rank) is not int or rank > largest):
            raise InputError(
                f"{where}: its config has the rank {shown(rank)}, and no tensor of it is longer than {largest:,}; "
                "copy the adapter's folder again"
            )


def merged(model: PeftModel) -> PreTrainedModel:
    """The base model with its adapter added into its weights, which may be trained."""
    whole: PreTrainedModel = model.merge_and_unload()
    whole.requires_grad_(True)  # PEFT froze the base weights, which are the model's own now
    return whole


def _shape_clash(error: BaseException) -> str:
    """PyTorch's first line names no tensor; the line that does says `size mismatch for …`."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
    return next((line for line in lines if line.startswith("size mismatch")), first_sentence(error))


def _first(names: Iterable[str]) -> str | None:
    return min(names, default=None)
