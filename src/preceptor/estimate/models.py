"""Models of a simulated step, from their configs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from preceptor.estimate.packed import pack, pack_to
from preceptor.models.load import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from preceptor.estimate.setups import ModelSetup
    from preceptor.recipe import LoraSpec


def meta_model(setup: ModelSetup) -> PreTrainedModel:
    """The model on the meta device, its weights packed where they are quantised; in evaluation mode.

    Raises:
        LookupError: for a quantisation whose memory is not known.
    """
    from transformers import AutoModelForCausalLM

    config = type(setup.config).from_dict(setup.config.to_dict())
    config.__dict__.pop("quantization_config", None)
    with quiet_transformers(), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=setup.dtype, trust_remote_code=setup.trust_remote_code
        )
    if setup.quantization is not None:
        pack(model, setup.quantization)
    elif setup.packed_bytes is not None:
        pack_to(model, setup.packed_bytes)
    return model.eval()


def with_lora(model: Any, lora: LoraSpec) -> Any:
    """A meta model with the adapter that is trained; a PEFT model."""
    from preceptor.stages.build import add_lora  # here, since it reads recipes, which need pydantic

    with torch.device("meta"):
        return add_lora(model, lora)


def with_adapter(model: Any, config: Any, name: str) -> Any:
    """A meta model with one more frozen adapter beside its weights; a PEFT model."""
    from peft import PeftModel, get_peft_model

    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.device("meta"):
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, adapter_name=name, autocast_adapter_dtype=False)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in trainable)
    return model


def largest_layer(model: nn.Module) -> int:
    """Elements of the largest module of those that are repeated in a list: what sharding gathers at a time."""
    lists = [child for module in model.modules() if isinstance(module, nn.ModuleList) for child in module]
    return max((sum(p.numel() for p in layer.parameters()) for layer in lists), default=0)
