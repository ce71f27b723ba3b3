"""Writing a finished model so that it is there whole or not at all, in safetensors, in its source's dtype.

Students train in float32; a student that came from a bfloat16 checkpoint is written back in bfloat16, and
whoever reads the stage afterwards reads that file, so that what was measured is what was saved.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from preceptor.models.load import quiet_transformers
from preceptor.system.files import publish_directory

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | None,
    directory: Path,
    *,
    dtype: torch.dtype,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    card: str | None = None,
    base_name: str | None = None,
) -> None:
    """Writes model, tokenizer (with its chat template) and card into `directory`, which appears complete.

    A `PeftModel` gives its adapter alone; that goes into `adapter/`, whole weights into `model/`.
    `state_dict` is for a sharded model whose weights the caller gathered. Floating parameters are written
    as `dtype`; buffers and integer tensors keep theirs. A directory that already has the name is replaced.
    `base_name` is what an adapter calls its base model, where that is not the path it was loaded from.
    """
    aside = directory.with_name(f".{directory.name}.writing")
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    weights = _cast(model, state_dict if state_dict is not None else model.state_dict(), dtype)
    with quiet_transformers():
        _forget_invalid_generation_settings(model)
        # A student may carry its teachers' adapters beside its own.
        own = {"selected_adapters": ["default"]} if isinstance(model, _peft_model()) else {}
        model.save_pretrained(str(aside), state_dict=weights, **own)
        if tokenizer is not None:
            tokenizer.save_pretrained(str(aside))
            keep_sentencepiece(tokenizer, aside)
    config_file = aside / "config.json"
    if config_file.is_file():
        # transformers writes the dtype of the live parameters, not of what it was given to write.
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config["dtype"] = str(dtype).removeprefix("torch.")
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    adapter_config = aside / "adapter_config.json"
    if adapter_config.is_file():
        config = json.loads(adapter_config.read_text(encoding="utf-8"))
        if base_name is not None:
            # Only in the file: PEFT looks for its base's config when it saves, and for one it does not find on the Hub.
            config["base_model_name_or_path"] = base_name
        if isinstance(config.get("target_modules"), list):  # a set, whose order is another one in every process
            config["target_modules"].sort()
        adapter_config.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    if card is not None:
        (aside / "README.md").write_text(card, encoding="utf-8")
    publish_directory(aside, directory)


def keep_sentencepiece(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Copies `tokenizer.model` into `folder` from where the tokenizer was loaded, which transformers leaves out.

    llama.cpp reads the pieces' scores from it. Converted without, a model gives the same logits and its text is cut
    into other tokens ("little" into "li", "t", "t", "le"), of which nobody is told.
    """
    source = Path(tokenizer.name_or_path) / "tokenizer.model"
    if source.is_file() and not (folder / source.name).exists():
        shutil.copyfile(source, folder / source.name)


def _peft_model() -> type:
    from peft import PeftModel

    return PeftModel  # type: ignore[no-any-return]


def _cast(
    model: torch.nn.Module, state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """A CPU copy in `dtype`. Tensors that were one (tied embedding and head) stay one, or both are written."""
    buffers = {name for name, _ in model.named_buffers()}
    done: dict[tuple[Any, ...], torch.Tensor] = {}
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state_dict.items():
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() == 0 or key not in done:
            plain = tensor.detach()
            # Buffers such as a router's correction bias are float32 on purpose.
            wanted = dtype if plain.is_floating_point() and name not in buffers else plain.dtype
            done[key] = plain.to("cpu", wanted)
        out[name] = done[key]
    return out


def _forget_invalid_generation_settings(model: Any) -> None:
    """Drops generation settings that contradict each other, which transformers would refuse to write.

    Some published checkpoints carry a temperature beside `do_sample: false`.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    try:
        settings.validate(strict=True)
    except ValueError:
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig(
            bos_token_id=settings.bos_token_id,
            eos_token_id=settings.eos_token_id,
            pad_token_id=settings.pad_token_id,
        )
