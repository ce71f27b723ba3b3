"""The checkpoints that `compose` and `merge` read: each whole and unquantised, and all of one shape.

Weights of two models can be combined only where the same name means the same thing in both. Everything that could
make it mean something else (architecture, rope, norms, tokenizer, shapes) is compared from configs and headers, before
a weight is read or a byte written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from preceptor.errors import InputError, first_sentence, shown
from preceptor.models.checkpoint import CONFIG, Checkpoint, check_model, locate
from preceptor.models.load import load_model, quiet_transformers
from preceptor.models.save import save_model
from preceptor.models.streaming import DTYPES, TensorReader, emptied
from preceptor.models.tokenizers import load_tokenizer, same_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preceptor.recipe import ModelSpec

# Config keys that do not change what the weights compute.
_WITHOUT_EFFECT = {
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "initializer_range",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "use_cache",
} | {field.name for field in fields(PreTrainedConfig)}
_MEND = "give checkpoints of one architecture, shape and tokenizer"


@dataclass(frozen=True)
class Source:
    """A checkpoint whose tensors are read by name; `where` begins its messages.

    `checkpoint` is the model's own folder. Where an adapter was merged in, `reader` reads the merged weights, which
    are float32, from another folder.
    """

    spec: ModelSpec
    where: str
    checkpoint: Checkpoint
    config: PreTrainedConfig
    reader: TensorReader

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor in the model's own folder; for what an adapter brought, that of the other weights."""
        info = self.checkpoint.tensors.get(name)
        return self.checkpoint.dtype if info is None else DTYPES[info.dtype]


def check_sources(specs: Sequence[ModelSpec]) -> list[Source]:
    """Makes sure that models can be combined, reading configs, headers and tokenizers only.

    Adapters are looked at, not merged: the sources returned read the base weights. `open_sources` merges.

    Raises:
        InputError: whatever `check_model` refuses; a model that is quantised or has settings that are not used here;
            the first difference between the first model and another.
    """
    sources = [_checked(spec) for spec in specs]
    for other in sources[1:]:
        _check_alike(sources[0], other)
    tokenizers: list[PreTrainedTokenizerBase] = [load_tokenizer(source.spec) for source in sources]
    for other, tokenizer in zip(sources[1:], tokenizers[1:]):
        _check_tokenizers(sources[0], tokenizers[0], other, tokenizer)
    return sources


@contextmanager
def open_sources(
    specs: Sequence[ModelSpec], scratch: Path, announce: Callable[[str], None] | None = None
) -> Iterator[list[Source]]:
    """The sources of `check_sources`, with adapters merged; `scratch` holds the merged weights meanwhile.

    Merging needs the memory of the whole model in float32, and its disk space below `scratch`.
    """
    sources = check_sources(specs)
    with emptied(scratch):
        opened = []
        for number, source in enumerate(sources):
            if source.spec.adapter is not None:
                if announce is not None:
                    announce(f"merges the adapter {source.spec.adapter!r} into {source.spec.path!r}, in memory")
                folder = scratch / str(number)
                # float32: rounded to the checkpoint's dtype now, the difference an adapter makes is rounded twice.
                save_model(load_model(source.spec, role="student"), None, folder, dtype=torch.float32)
                source = replace(source, reader=TensorReader.open(folder, source.where))
            opened.append(source)
        for other in opened[1:]:
            _check_alike(opened[0], other)  # an adapter may have brought tensors of its own
        yield opened


def stored_config(source: Source, dtype: torch.dtype) -> dict[str, Any]:
    """The model's `config.json`, naming `dtype` as the dtype of its weights."""
    kept = {key: value for key, value in source.checkpoint.config.items() if key != "torch_dtype"}
    return {**kept, "dtype": str(dtype).removeprefix("torch.")}


def _checked(spec: ModelSpec) -> Source:
    where = f"model {spec.path!r}" + ("" if spec.adapter is None else f" with adapter {spec.adapter!r}")
    if spec.quantization is not None:
        raise InputError(f"{where}: weights are combined unquantised; leave out `quantization`")
    for key, value in (("dtype", spec.dtype), ("device_map", spec.device_map)):
        if value is not None:
            raise InputError(f"{where}: is read tensor by tensor, for which `{key}` means nothing; leave it out")
    # Before `check_model`, which would ask for the quantisation's package to be installed.
    if _is_quantised(locate(spec.path, spec.revision, where=where) / CONFIG):
        raise InputError(
            f"{where}: is quantised, and packed weights cannot be combined; give the unquantised checkpoint"
        )
    checkpoint = check_model(spec)
    if "auto_map" in checkpoint.config:
        raise InputError(f"{where}: comes with Python code of its own; give a model of an architecture in transformers")
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(str(checkpoint.folder))
    except Exception as error:
        # huggingface_hub checks a config's values with an exception that is neither ValueError nor TypeError.
        if isinstance(error, ValueError | TypeError | KeyError) or type(error).__name__.startswith("StrictDataclass"):
            raise InputError(f"{where}: config.json is not valid ({first_sentence(error)}); correct it") from error
        raise
    return Source(spec, where, checkpoint, config, TensorReader.open(checkpoint.folder, where))


def _is_quantised(config: Path) -> bool:
    try:
        return "quantization_config" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False  # `check_model` says what is wrong with it


def _check_alike(first: Source, other: Source) -> None:
    ours, theirs = _effective(first.config), _effective(other.config)
    for key in ["model_type", "rope_parameters.rope_type", *sorted(ours.keys() | theirs.keys())]:
        if ours.get(key) != theirs.get(key):
            raise _difference(first, other, key, shown(ours.get(key)), shown(theirs.get(key)))
    here, there = first.reader.tensors, other.reader.tensors
    for name in sorted(here.keys() | there.keys()):
        shapes = [str(list(found[name].shape)) if name in found else "absent" for found in (here, there)]
        if shapes[0] != shapes[1]:
            raise _difference(first, other, name, *shapes)


def _effective(config: PreTrainedConfig) -> dict[str, Any]:
    """What in a config bears on the computation, with defaults filled and `rope_parameters` taken apart."""
    declared = {field.name for field in fields(type(config))} | {"head_dim"}
    values = {key: value for key, value in config.to_dict().items() if key in declared - _WITHOUT_EFFECT}
    rope = values.pop("rope_parameters", None) or {}
    values |= {f"rope_parameters.{key}": value for key, value in rope.items()}
    return {"model_type": config.model_type, **values}


def _check_tokenizers(
    first: Source, ours: PreTrainedTokenizerBase, other: Source, theirs: PreTrainedTokenizerBase
) -> None:
    try:
        same_tokenizer(ours, theirs)
    except InputError:
        pair = [{index: token for token, index in tokenizer.get_vocab().items()} for tokenizer in (ours, theirs)]
        different = [index for index in pair[0].keys() | pair[1].keys() if pair[0].get(index) != pair[1].get(index)]
        if not different:
            raise InputError(
                f"{first.where} and {other.where}: their tokenizers have the same tokens but cut text differently; "
                f"{_MEND}"
            ) from None
        token = min(different)
        words = [shown(vocabulary[token], 30) if token in vocabulary else "absent" for vocabulary in pair]
        raise _difference(first, other, f"token {token} of the tokenizer", *words) from None


def _difference(first: Source, other: Source, what: str, ours: str, theirs: str) -> InputError:
    named = what if " " in what else f"`{what}`"
    return InputError(
        f"{first.where} and {other.where}: {named} is {ours} in the first and {theirs} in the second; {_MEND}"
    )
