"""Real code on tensors that have shapes, dtypes and storages, and no memory.

Weights and whatever is computed from them are fake tensors. What a batch derives from its tokens and masks is small
and stays real, so that code that looks at values there (how many targets, which rows) does what it does in training.
Where code asks for the value of a fake number, as a check of a model does, it gets 0, False, or "yes, equal".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from preceptor.estimate.costs import Costs
from preceptor.estimate.storages import Storages

Module = TypeVar("Module", bound=nn.Module)

_REAL_FLOATS = 2**16
"""Elements up to which a new tensor of floats is real."""
_REAL_OTHERS = 2**24
"""And one of integers or booleans, or a result of real tensors."""
_CPU = torch.device("cpu")


class Simulation(TorchDispatchMode):
    """Within `with simulation:` operations allocate nothing large; `storages` and `costs` are what they would have."""

    def __init__(self) -> None:
        super().__init__()
        self.storages = Storages()
        self.costs = Costs()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    # --- tensors without memory -------------------------------------------------------------------------------

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor without memory."""
        with self._fake:
            made = torch.empty(shape, dtype=dtype)
        self.storages.see(made)
        return made

    def adopt(self, model: Module) -> Module:
        """`model`, built on the meta device, with parameters and buffers without memory; tied ones stay tied."""
        known: dict[int, Tensor] = {}

        def fake(tensor: Tensor) -> Tensor:
            if id(tensor) not in known:
                bare = self.empty(tensor.shape, tensor.dtype)
                known[id(tensor)] = (
                    nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare
                )
            return known[id(tensor)]

        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None and tensor.is_meta:
                        held[name] = fake(tensor)  # type: ignore[assignment]
        return model

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Name what is going on, in storages and costs."""
        with self.storages.phase(name), self.costs.phase(name):
            yield

    # --- operations -------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # half of all calls: every look at `tensor.device`
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        kwargs = kwargs or {}
        given = _tensors((args, tuple(kwargs.values())))
        out = self._run(func, args, kwargs, given)
        made = _tensors((out,))
        fresh = [tensor for tensor in made if self.storages.see(tensor)]
        if fresh or func._schema.is_mutable:
            # What was written in place is among the arguments.
            self.costs.add(func, args, kwargs, given + fresh, out)
        if fresh and func is torch.ops.aten._to_copy.default:
            self.storages.copied(given[0], fresh[0])
        return out

    def _run(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        if any(isinstance(each, FakeTensor) for each in given):
            if func in _ANSWERS:
                return _answer(func, given[0])
            if func is torch.ops.aten._grouped_mm.default:
                return self._grouped_mm(*args, **kwargs)
            return func(*args, **kwargs)
        if given:
            if _size(given) > _REAL_OTHERS:
                with self._fake:
                    return func(*args, **kwargs)
            return func(*args, **kwargs)
        with self._fake:
            made = func(*args, **kwargs)
        if isinstance(made, Tensor):
            limit = _REAL_FLOATS if made.is_floating_point() else _REAL_OTHERS
            return func(*args, **kwargs) if made.numel() <= limit else made
        return func(*args, **kwargs)

    def _grouped_mm(
        self, left: Tensor, right: Tensor, offs: Tensor | None = None, bias: Any = None, out_dtype: Any = None
    ) -> Tensor:
        """What the product of groups gives in any dtype; torch's own rule for fake tensors allows bfloat16 alone."""
        groups = [] if offs is None or left.dim() + right.dim() == 5 else [offs.numel()]
        stacked = left.shape[:1] if left.dim() == right.dim() == 3 else groups
        with self._fake:
            return torch.empty([*stacked, left.shape[-2], right.shape[-1]], dtype=out_dtype or left.dtype)


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    """All tensors among arguments or results."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _size(tensors: Sequence[Tensor]) -> int:
    """Elements that an operation on `tensors` may make: of what they broadcast to, or of the largest."""
    shapes = [tensor.shape for tensor in tensors]
    try:
        return math.prod(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        return max(tensor.numel() for tensor in tensors)


_ANSWERS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.allclose.default,
}


def _answer(func: Any, tensor: Tensor) -> Any:
    if func is not torch.ops.aten._local_scalar_dense.default:
        return True
    if tensor.dtype == torch.bool:
        return False
    return 0.0 if tensor.is_floating_point() else 0
