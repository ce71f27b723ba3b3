"""What a stranger's `config.json` must not say: sizes that no weights beside it can have, and code from elsewhere.

transformers builds whatever a config asks for before it looks at the weights: a hundred thousand layers take minutes, a
head of a billion rows more memory than there is, and a kernel named there is fetched from the Hub and run. A model's
sizes are known from its headers, so that all of this is refused before anything is built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from preceptor.errors import InputError, shown
from preceptor.models.headers import TensorInfo

_COUNTS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
_BY_LAYER = ("intermediate_size", "num_attention_heads", "num_key_value_heads")
_MOST = 2**31 - 1
_LAYERS, _WIDTH = "num_hidden_layers", "hidden_size"
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def check_sizes(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str) -> None:
    """Refuses sizes that are none, and sizes for which the weights are too few.

    Every layer has at least one tensor of its own, and the embedding and each MLP's matrix are stored whole, so that
    the weights bound what a config can say. Keys that a config does not have, or has as null, are transformers' affair.

    Raises:
        InputError: naming the key.
    """
    for block in _blocks(config):
        sizes: dict[str, int] = {}
        for key in _COUNTS:
            value = block.get(key)
            if value is None:
                continue
            # Some have one for each layer: Gemma 3n, OpenELM.
            each = value if key in _BY_LAYER and isinstance(value, list) and value else [value]
            if not all(type(one) is int and 1 <= one <= _MOST for one in each):
                raise InputError(f"{where}: config.json has `{key}` {shown(value)}, which must be from 1 to {_MOST:,}")
            sizes[key] = max(each)
        if (layers := sizes.get(_LAYERS, 1)) > len(tensors):
            raise InputError(
                f"{where}: config.json has `{_LAYERS}` {layers:,}, and the weights are {len(tensors):,} tensors in "
                "all; the config and the weights belong to different models"
            )
        if config.get("quantization_config") is not None:
            continue  # packed weights have other shapes
        stored = sum(math.prod(tensor.shape) for tensor in tensors.values())
        for key in ("vocab_size", "intermediate_size"):
            if (wanted := sizes.get(key, 0) * sizes.get(_WIDTH, 0)) > stored:
                raise InputError(
                    f"{where}: config.json has `{key}` {sizes[key]:,} and `{_WIDTH}` {sizes[_WIDTH]:,}, a matrix of "
                    f"{wanted:,} numbers, and the weights hold {stored:,} in all; the config and the weights belong to "
                    "different models"
                )


def check_kernels(config: Mapping[str, Any], where: str) -> None:
    """Refuses a config that names a kernel on the Hub, which transformers would fetch and run.

    Raises:
        InputError: naming the key and the kernel.
    """
    for block in _blocks(config):
        for key in _KERNELS:
            value = block.get(key)
            for each in value.values() if isinstance(value, dict) else [value]:
                if isinstance(each, str) and "/" in each:
                    raise InputError(
                        f"{where}: config.json has `{key}` {shown(each)}, which is code on the Hugging Face Hub; "
                        "remove the key, or if you trust that code, set `trust_remote_code: true` for this model"
                    )


def _blocks(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The config, and that of the language model in one of several parts."""
    text = config.get("text_config")
    return [config, text] if isinstance(text, dict) else [config]
