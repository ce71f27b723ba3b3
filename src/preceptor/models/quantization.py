"""Quantised models: what a recipe's `quantization` block means, and whether this machine can do it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from preceptor.errors import InputError, accepted, did_you_mean, first_sentence, shown

if TYPE_CHECKING:
    from preceptor.models.checkpoint import Checkpoint
    from preceptor.recipe import ModelSpec

_BLOCK, _NESTED_BLOCK = 64, 256  # bitsandbytes: weights per scale, and scales per second scale of double quantisation


def quantization_config(spec: ModelSpec) -> Any | None:
    """The transformers quantisation config that `spec.quantization` describes, or None.

    `{load_in_4bit: true}` and `{load_in_8bit: true}` mean bitsandbytes; others are named by `quant_method`.

    Raises:
        InputError: an unknown method, or settings that method does not have.
    """
    if spec.quantization is None:
        return None
    where = f"model {spec.path!r}: `quantization`"
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoQuantizationConfig
    from transformers.utils.quantization_config import BitsAndBytesConfig

    given = dict(spec.quantization)
    bits = bool(given.get("load_in_4bit")) + bool(given.get("load_in_8bit"))
    method = given.get("quant_method", "bitsandbytes" if bits else None)
    methods = sorted({name.split("_4bit")[0].split("_8bit")[0] for name in AUTO_QUANTIZATION_CONFIG_MAPPING})
    if method not in methods:
        raise InputError(f"{where}: `quant_method` is {shown(method)}; accepted are {accepted(methods)}")
    if method == "bitsandbytes" and bits != 1:
        raise InputError(f"{where}: bitsandbytes needs exactly one of `load_in_4bit: true` and `load_in_8bit: true`")
    if method == "bitsandbytes" and spec.dtype == "float64":
        raise InputError(f"{where}: bitsandbytes quantises no float64 weights; leave out `dtype`, or set it to float32")
    try:
        config = AutoQuantizationConfig.from_dict(given)
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise InputError(f"{where}: {method} refuses these settings ({error}); correct them") from error
    if isinstance(config, BitsAndBytesConfig):
        # This class alone takes unknown keys with a mere warning; a mistyped one would quantise another way.
        known = sorted({key.lstrip("_") for key in config.to_dict()})
        for key in given:
            if key not in known:
                raise InputError(f"{where}: bitsandbytes has no setting {key!r}{did_you_mean(key, known)}; remove it")
    return config


def by_bitsandbytes(spec: ModelSpec) -> bool:
    """Whether the model is quantised by bitsandbytes while it is loaded."""
    return any((spec.quantization or {}).get(key) for key in ("load_in_4bit", "load_in_8bit"))


def check_quantization(spec: ModelSpec, config: dict[str, Any]) -> None:
    """Refuses a quantised model that this machine cannot load, before anything is loaded.

    `config` is the model's `config.json`: a checkpoint may be quantised itself.

    Raises:
        InputError: whatever `quantization_config` refuses; a checkpoint that is quantised already, in another way or by
            a method without settings of its own for loading; the library or the device that the method needs is absent.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    ours = quantization_config(spec)
    stored = config.get("quantization_config")
    if stored is not None and not isinstance(stored, dict):
        raise InputError(
            f"model {spec.path!r}: config.json has `quantization_config` {shown(stored)}, which must be an object; "
            "remove it where the weights are not quantised"
        )
    if ours is None and not isinstance(stored, dict):
        return
    if ours is not None and isinstance(stored, dict):
        _check_kept(spec, ours, stored)
    try:
        chosen = stored if isinstance(stored, dict) else ours
        quantizer = AutoHfQuantizer.from_config(chosen, pre_quantized=isinstance(stored, dict))
        quantizer.validate_environment(device_map=spec.device_map, dtype=torch.float32, weights_only=True)
    except ImportError as error:
        raise InputError(
            f"model {spec.path!r}: its quantisation needs a package that is not installed ({first_sentence(error)})"
        ) from error
    except (ValueError, RuntimeError, TypeError, AttributeError, LookupError) as error:
        raise InputError(
            f"model {spec.path!r}: its quantisation does not work on this machine ({first_sentence(error)})"
        ) from error


def _check_kept(spec: ModelSpec, ours: Any, stored: dict[str, Any]) -> None:
    """Refuses a recipe's quantisation that transformers would leave out for that of the checkpoint."""
    methods = [str(getattr(each, "value", each)) for each in (ours.quant_method, stored.get("quant_method"))]
    # Some methods have settings that a stored model may be loaded with, such as `dequantize`.
    if methods[0] != methods[1] or not hasattr(ours, "get_loading_attributes"):
        raise InputError(
            f"model {spec.path!r}: `quantization` is given, but its weights are stored quantised ({methods[1]}) and "
            "stay as they are; leave it out, or give the model that they were made of"
        )


def loaded_dtype(spec: ModelSpec, checkpoint: Checkpoint, role: Literal["student", "teacher"]) -> torch.dtype | str:
    """The dtype that the plain weights of a model are loaded in; "auto" leaves it to a self-quantised checkpoint."""
    if spec.dtype is not None and spec.dtype != "auto":
        dtype: torch.dtype = getattr(torch, spec.dtype)
        return dtype
    if isinstance(checkpoint.config.get("quantization_config"), dict):
        return "auto"  # its quantiser knows which dtype the unpacked weights want
    bitsandbytes = by_bitsandbytes(spec)
    if role == "student" and spec.dtype is None and (bitsandbytes or spec.quantization is None):
        return torch.float32
    # The stored dtype, not "auto": transformers would believe a config.json that says something else.
    return torch.float32 if bitsandbytes and checkpoint.dtype == torch.float64 else checkpoint.dtype


def weight_bytes(
    spec: ModelSpec, checkpoint: Checkpoint, *, role: Literal["student", "teacher"] = "teacher"
) -> dict[str, int]:
    """Bytes that each parameter and buffer of a model takes once `load_model` has it in memory, scales included.

    Nothing is read: the model is built from its config on the meta device. Names are those of the model, not of the
    files. Quantised by bitsandbytes, the figures are exact, also where bitsandbytes is not installed. By other methods
    they are those of the model before it is quantised, an upper bound; of a checkpoint quantised already, those of its
    files. An adapter is not counted.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = loaded_dtype(spec, checkpoint, role)
    if isinstance(checkpoint.config.get("quantization_config"), dict):
        return {name: tensor.bytes for name, tensor in checkpoint.tensors.items()}
    code = {"trust_remote_code": spec.trust_remote_code}
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(str(checkpoint.folder), **code)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **code)
    plain = [*model.named_parameters(), *model.named_buffers()]
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in plain}
    given = spec.quantization
    if given is not None and by_bitsandbytes(spec):
        sizes |= {name: packed_bytes(given, *size) for name, size in quantized_parameters(model, given).items()}
    return sizes


def quantized_parameters(model: Any, given: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Which parameters bitsandbytes quantises, and their sizes: experts (0 for a linear module's), rows, columns."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    from preceptor.models.quantized_experts import experts_parameters, kept_modules

    kept = HfQuantizer.get_modules_to_not_convert(
        model, kept_modules(model, given.get("llm_int8_skip_modules")), model._keep_in_fp32_modules
    )
    found: dict[str, tuple[int, int, int]] = {}
    for name, module in model.named_modules():
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, kept):
            rows, columns = module.weight.shape
            # GPT-2's layers store the transpose of a linear layer's weight.
            found[f"{name}.weight"] = (0, columns, rows) if isinstance(module, Conv1D) else (0, rows, columns)
    for name in experts_parameters(model, kept):
        found[name] = tuple(model.get_parameter(name).shape)
    return found


def packed_bytes(given: dict[str, Any], experts: int, rows: int, columns: int) -> int:
    """Bytes of one quantised parameter with its scales and tables (see `quantized_experts` and bitsandbytes)."""
    each = max(experts, 1)
    if given.get("load_in_8bit"):
        return each * rows * (columns + 4)
    blocks = math.ceil(rows * columns / _BLOCK)
    storage = getattr(torch, str(given.get("bnb_4bit_quant_storage") or "uint8").removeprefix("torch."))
    width = 1 if experts else storage.itemsize
    packed = math.ceil(math.ceil(rows * columns / 2) / width) * width
    table = 0 if experts else 16 * 4
    if not given.get("bnb_4bit_use_double_quant"):
        return each * (packed + 4 * blocks) + table
    return each * (packed + blocks + 4 * math.ceil(blocks / _NESTED_BLOCK) + 4) + table + 256 * 4
