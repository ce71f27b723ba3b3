"""Small checkpoints of the dense and sparse architectures that `compose` and `merge` read, with a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from preceptor.models.save import save_model
from preceptor.models.sources import Source, open_sources
from preceptor.models.tokenizers import train_tokenizer
from preceptor.recipe import ModelSpec

LETTERS = "User: Assistant:\n\nabcdefgh 0123"
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "rms_norm_eps": 1e-4,
    "tie_word_embeddings": False,
}
SPARSE_SIZES: dict[str, Any] = {"num_experts": 3, "num_experts_per_tok": 2}


def model_of(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random float32 model; norms are random too, so that a norm taken from the wrong place shows."""
    torch.manual_seed(seed)
    tokens = len(tokenizer_of())
    settings = {**SIZES, "vocab_size": tokens, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, **changes}
    config = AutoConfig.for_model(kind, **settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0, 0.3)
    return model.eval()


def tokenizer_of(letters: str = LETTERS) -> Any:
    return train_tokenizer([letters], vocab_size=100, kind="characters", announce=print)


def write(
    folder: Path,
    kind: str = "mistral",
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    letters: str = LETTERS,
    **changes: Any,
) -> ModelSpec:
    """Writes a checkpoint with its tokenizer into `folder`."""
    save_model(model_of(kind, seed, **changes), tokenizer_of(letters), folder, dtype=dtype)
    return ModelSpec(path=str(folder))


def using(specs: list[ModelSpec], scratch: Path, use: Callable[[list[Source]], Any]) -> Any:
    with open_sources(specs, scratch / ".merged") as sources:
        return use(sources)


def token_ids(rows: int = 3, length: int = 11, seed: int = 5) -> torch.Tensor:
    return torch.randint(0, 20, (rows, length), generator=torch.Generator().manual_seed(seed))


def write_adapter(folder: Path, base: ModelSpec) -> str:
    """Writes a LoRA adapter on all linear layers of `base`, with weights that make a difference."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    torch.manual_seed(3)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    wrapped.save_pretrained(folder)
    return str(folder)


def with_adapter(base: ModelSpec, adapter: str) -> PreTrainedModel:
    """The base in float32 with the adapter merged in."""
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    merged: PreTrainedModel = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return merged
