"""A checkpoint's weights and optimiser states as several processes hold them: each writes its own part.

    shards-00000.safetensors   what process 0 holds of every trained weight and of the optimiser's states
    shards-00001.safetensors   …

Each file's header says where its rows begin in the whole tensor, so that any number of processes reads them back, each
what it then holds. Nothing is gathered and nothing is pickled. (torch.distributed.checkpoint does the same, but its
index is a pickle.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from preceptor.errors import InputError
from preceptor.models.sharding import named_tensors

_FILE = "shards-{:05d}.safetensors"
_FILES = "shards-*.safetensors"


def has_shards(folder: Path) -> bool:
    """Whether a checkpoint was written so."""
    return any(folder.glob(_FILES))


def save_shards(folder: Path, model: nn.Module, optimizer: Optimizer, *, rank: int) -> None:
    """Write this process's part into `folder`; the first one also writes what all hold alike."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Any]] = {}
    for key, tensor in _all(model, optimizer):
        if not isinstance(tensor, DTensor) and rank > 0:
            continue
        local, begin = _held(tensor)
        if local.numel() or not isinstance(tensor, DTensor):
            tensors[key] = local.detach().cpu().contiguous()
            parts[key] = {"begin": begin, "shape": list(tensor.shape)}
    about = {"parts": parts, "groups": _groups(model, optimizer)}
    save_file(tensors, folder / _FILE.format(rank), metadata={"preceptor": json.dumps(about)})


def load_weights(folder: Path, model: nn.Module) -> None:
    """Put a checkpoint's trained weights into `model`.

    Raises:
        RuntimeError: when it lacks one.
    """
    shards = _Shards(folder)
    with torch.no_grad():
        for name, parameter in named_tensors(model, trainable=True):
            shards.read(f"model/{name}", parameter)


def load_optimizer(folder: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Put a checkpoint's optimiser states, rates and settings into `optimizer`, whose groups are those it had.

    Raises:
        RuntimeError: for other groups of parameters, or a state that is not whole.
    """
    shards = _Shards(folder)
    names = {id(parameter): name for name, parameter in named_tensors(model, trainable=True)}
    groups = optimizer.param_groups
    if [[names[id(p)] for p in group["params"]] for group in groups] != [group["names"] for group in shards.groups]:
        raise RuntimeError("the checkpoint's optimiser has other groups of parameters")
    for group, saved in zip(groups, shards.groups, strict=True):
        group.update({key: tuple(v) if isinstance(v, list) else v for key, v in saved["settings"].items()})
        for parameter in group["params"]:
            name = names[id(parameter)]
            # Fused and capturable optimisers count steps on the device.
            on_device = bool(group.get("fused") or group.get("capturable"))
            optimizer.state[parameter] = {
                key: shards.state(f"optimizer/{name}/{key}", parameter, on_device=on_device)
                for key in shards.states_of(name)
            }


def _all(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    names = {}
    for name, parameter in named_tensors(model, trainable=True):
        names[id(parameter)] = name
        yield f"model/{name}", parameter
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                if value is None:  # such as the momentum of an optimiser that has none
                    continue
                state = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
                if isinstance(parameter, DTensor) and state.ndim and state.shape != parameter.shape:
                    raise InputError(
                        f"training.optim: {type(optimizer).__name__} keeps a {key!r} that is not laid out as the "
                        "weights are, so under FSDP no checkpoint can be cut of it; use adamw_torch or sgd, or write "
                        "save_strategy: 'no'"
                    )
                yield f"optimizer/{names[id(parameter)]}/{key}", state


def _groups(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    names = {id(parameter): name for name, parameter in named_tensors(model, trainable=True)}
    return [
        {
            "names": [names[id(parameter)] for parameter in group["params"]],
            "settings": {key: _plain(value) for key, value in group.items() if key != "params"},
        }
        for group in optimizer.param_groups
    ]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _held(tensor: Tensor) -> tuple[Tensor, int]:
    """What this process holds, and the row of the whole tensor at which that begins."""
    if not isinstance(tensor, DTensor):
        return tensor, 0
    (placement,) = tensor.placements
    assert isinstance(placement, Shard), "FSDP2 cuts by rows"
    assert placement.dim == 0
    # As torch.chunk cuts: all parts as long as the first, but the last ones.
    rows = -(-tensor.shape[0] // tensor.device_mesh.size())
    return tensor.to_local(), min(rows * tensor.device_mesh.get_local_rank(), tensor.shape[0])


class _Shards:
    """All processes' files of one checkpoint."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pieces: dict[str, list[tuple[Any, int]]] = {}
        self._shapes: dict[str, list[int]] = {}
        self.groups: list[dict[str, Any]] = []
        for path in sorted(folder.glob(_FILES)):
            file = safe_open(path, framework="pt")
            about = json.loads(file.metadata()["preceptor"])
            self.groups = about["groups"]
            for key, part in about["parts"].items():
                self._pieces.setdefault(key, []).append((file, part["begin"]))
                self._shapes[key] = part["shape"]

    def states_of(self, name: str) -> list[str]:
        prefix = f"optimizer/{name}/"
        return [key.removeprefix(prefix) for key in self._pieces if key.startswith(prefix)]

    def state(self, key: str, parameter: Tensor, *, on_device: bool) -> Tensor:
        """An optimiser's state: laid out like its parameter where it has that shape, else a number of steps."""
        file, _ = self._pieces[key][0]
        if self._shapes[key] != list(parameter.shape):
            whole: Tensor = file.get_tensor(key)
            return whole.to(parameter.device) if on_device or whole.ndim else whole
        dtype = file.get_tensor(key).dtype
        made = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
        self.read(key, made)
        return made

    def read(self, key: str, into: Tensor) -> None:
        """Fill what this process holds of `into`."""
        local, begin = _held(into)
        if self._shapes.get(key) != list(into.shape):
            raise RuntimeError(f"{self._folder}: lacks {key!r}, or has it in another shape")
        if local.ndim == 0:
            local.copy_(self._pieces[key][0][0].get_tensor(key))
            return
        end, filled = begin + local.shape[0], 0
        for file, first in self._pieces[key]:
            piece = file.get_slice(key)
            last = first + piece.get_shape()[0]
            a, b = max(begin, first), min(end, last)
            if a < b:
                local[a - begin : b - begin].copy_(piece[a - first : b - first])
                filled += b - a
        if filled != local.shape[0]:
            raise RuntimeError(f"{self._folder}: lacks rows of {key!r}")
