"""Quantised models: what a recipe's `quantization` block means, and whether this machine can do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from preceptor.errors import InputError, accepted, did_you_mean, shown

if TYPE_CHECKING:
    from preceptor.recipe import ModelSpec


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


def check_quantization(spec: ModelSpec, config: dict[str, Any]) -> None:
    """Refuses a quantised model that this machine cannot load, before anything is loaded.

    `config` is the model's `config.json`: a checkpoint may be quantised itself.

    Raises:
        InputError: whatever `quantization_config` refuses; the library or the device that the method needs is absent.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    ours = quantization_config(spec)
    stored = config.get("quantization_config")
    if ours is None and not isinstance(stored, dict):
        return
    try:
        chosen = stored if isinstance(stored, dict) else ours
        quantizer = AutoHfQuantizer.from_config(chosen, pre_quantized=isinstance(stored, dict))
        quantizer.validate_environment(device_map=spec.device_map, dtype=torch.float32, weights_only=True)
    except ImportError as error:
        raise InputError(
            f"model {spec.path!r}: its quantisation needs a package that is not installed ({_line(error)})"
        ) from error
    except (ValueError, RuntimeError, TypeError) as error:
        raise InputError(
            f"model {spec.path!r}: its quantisation does not work on this machine ({_line(error)})"
        ) from error


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
