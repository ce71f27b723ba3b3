"""Models whose weights wait in main memory or on disk, and are on a device only while their module runs.

accelerate does that for a `device_map` that names `cpu` or `disk` beside a device: such a weight is on the meta device
until the hook of its module fetches it, and is dropped after the module's forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def is_offloaded(model: nn.Module) -> bool:
    """Whether some weights are away until they are used."""
    return any(parameter.is_meta for parameter in model.parameters())


def comes_back(model: nn.Module) -> bool:
    """Whether a hook of its module fetches every weight that is away."""
    return all(
        any(getattr(hook, "offload", False) for hook in _hooks(module))
        for module in model.modules()
        if any(parameter.is_meta for parameter in module.parameters(recurse=False))
    )


def working_device(model: nn.Module) -> torch.device:
    """Where `model` takes its inputs: the device of its first weight, or the one that weight is fetched to."""
    device = next(model.parameters()).device
    if device.type != "meta":
        return device
    for module in model.modules():
        for hook in _hooks(module):
            if getattr(hook, "execution_device", None) is not None:
                fetched = hook.execution_device
                return torch.device("cuda", fetched) if isinstance(fetched, int) else torch.device(fetched)
    return device


def forward_attribute(module: nn.Module) -> str:
    """The attribute that holds the module's own forward: accelerate's hooks put theirs in the place of it."""
    return "_old_forward" if hasattr(module, "_hf_hook") else "forward"


def _hooks(module: nn.Module) -> Iterator[Any]:
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", [hook])
