"""Quantised weights in a simulated model: their bytes, and what each product unpacks of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from preceptor.models.quantization import packed_bytes, quantized_parameters


def pack(model: Any, given: Mapping[str, Any]) -> None:
    """Put packed weights in the place of those that bitsandbytes quantises when the model is loaded.

    Raises:
        LookupError: for another method, whose memory is not known here.
    """
    if not (given.get("load_in_4bit") or given.get("load_in_8bit")):
        raise LookupError(f"how much memory {given.get('quant_method')} takes is not known")
    config = dict(given)
    for name, size in quantized_parameters(model, config).items():
        _replace(model, name, packed_bytes(config, *size))


def pack_to(model: nn.Module, size: int) -> None:
    """Pack the linear layers and experts of a model whose files, quantised already, hold `size` bytes in all."""
    names = [
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if (parameter.dim() == 3 or type(module) is nn.Linear) and not path.endswith("lm_head") and name != "bias"
    ]
    inside = {name: model.get_parameter(name) for name in names}
    packed = sum(parameter.numel() for parameter in inside.values())
    plain = sum(p.numel() * p.element_size() for p in model.parameters())
    plain -= sum(p.numel() * p.element_size() for p in inside.values())
    for name, parameter in inside.items():
        _replace(model, name, round(max(size - plain, 0) * parameter.numel() / packed))


def _replace(model: nn.Module, name: str, size: int) -> None:
    path, own = name.rsplit(".", 1)
    module = model.get_submodule(path)
    if isinstance(module, nn.Linear):
        model.set_submodule(path, PackedLinear(module, torch.empty(size, dtype=torch.uint8, device="meta")))
        return
    parameter = module._parameters.pop(own)
    assert parameter is not None
    packed = PackedExperts(
        torch.empty(size, dtype=torch.uint8, device="meta"), tuple(parameter.shape[1:]), parameter.dtype
    )
    module.add_module(own, packed)
    if isinstance(module._modules.get("down_proj"), PackedExperts):
        module.forward = lambda *args: _experts(module, *args)


class PackedLinear(nn.Linear):
    """A linear layer that unpacks its weight for each product, and again for the product of the backward."""

    def __init__(self, plain: nn.Linear, packed: Tensor) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.compute = plain.weight.dtype
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = plain.bias

    def forward(self, input: Tensor) -> Tensor:
        """As a linear layer's."""
        out: Tensor = _Product.apply(input, self.weight, (self.out_features, self.in_features), self.compute)
        return out if self.bias is None else out + self.bias


class PackedExperts(nn.Module):
    """One projection of every expert; `packed[e]` is one expert's matrix, unpacked."""

    def __init__(self, packed: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.shape, self.dtype = shape, dtype

    def __getitem__(self, expert: int) -> Tensor:
        return _unpacked(self.packed, self.shape, self.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int], compute: torch.dtype) -> Tensor:
        ctx.packed, ctx.shape, ctx.compute, ctx.dtype = packed, shape, compute, x.dtype
        return torch.nn.functional.linear(x.to(compute), _unpacked(packed, shape, compute))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].to(ctx.compute) @ _unpacked(ctx.packed, ctx.shape, ctx.compute)
        return grad.to(ctx.dtype), None, None, None


def _unpacked(packed: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A weight of `shape` in memory of its own."""
    return torch.empty(shape, dtype=dtype).copy_(packed[:1])


def _experts(module: Any, hidden_nD: Tensor, chosen_nk: Tensor, weight_nk: Tensor) -> Tensor:
    """The eager forward of experts, one after the other, each of them chosen by as many tokens as any other."""
    n, k = chosen_nk.shape
    rows = torch.arange(-(-n * k // module.num_experts)) % n
    out_nD = torch.zeros_like(hidden_nD)
    for expert in range(module.num_experts):
        inner = nn.functional.linear(hidden_nD[rows], module.gate_up_proj[expert])
        mine = nn.functional.linear(module._apply_gate(inner), module.down_proj[expert])
        mine = mine * weight_nk[rows, :1]
        out_nD.index_add_(0, rows, mine.to(out_nD.dtype))
    return out_nD
