"""Experts quantised while a checkpoint is read, which transformers' own bitsandbytes loading leaves in 16 bit.

bitsandbytes replaces `nn.Linear` modules. transformers 5 keeps the experts of a layer in 3-D parameters [E,out,in]
(`experts.gate_up_proj`, `experts.down_proj`), which are no linear modules and hold more than nine tenths of a sparse
model. Here each of them becomes a `PackedExperts` as soon as it is read, so that no more than one is in memory
unpacked. The experts' own eager forward takes one expert's matrix after the other out of it: there, and only while it
is used, one matrix is unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module


class PackedExperts(nn.Module):
    """One projection of every expert, [E,out,in], packed; `packed[e]` is the matrix [out,in] of expert e, unpacked.

    Subclasses say how. It stands where the experts module had a parameter, whose only use in transformers' eager
    experts forwards is this indexing; anything else done to it raises TypeError.
    """

    packed: nn.Parameter

    def __init__(self, weight_EOI: Tensor) -> None:
        super().__init__()
        self.shape, self.dtype = weight_EOI.shape, weight_EOI.dtype

    def __getitem__(self, expert: int | Tensor) -> Tensor:
        return self.unpacked(int(expert))

    def unpacked(self, expert: int) -> Tensor:
        """The matrix [out,in] of one expert in the dtype that the model was loaded in."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{list(self.shape)} of {self.dtype}"


class Experts4Bit(PackedExperts):
    """NF4 or FP4 in blocks of 64 (arXiv 2305.14314), by bitsandbytes; with `double`, the blocks' scales in 8 bit.

    Blocks do not reach over two experts.
    """

    absmax: Tensor
    nested: Tensor
    offset: Tensor
    code: Tensor

    def __init__(self, weight_EOI: Tensor, *, kind: str, double: bool) -> None:
        super().__init__(weight_EOI)
        from bitsandbytes.functional import quantize_4bit

        self._kind, self._double = kind, double
        data, states = [], []
        for weight_OI in weight_EOI:
            packed, state = quantize_4bit(weight_OI.contiguous(), compress_statistics=double, quant_type=kind)
            data.append(packed.flatten())
            states.append(state)
        self._block = int(states[0].blocksize)
        self.packed = nn.Parameter(torch.stack(data), requires_grad=False)
        self.register_buffer("absmax", torch.stack([state.absmax for state in states]))
        if double:
            self._nested_block = int(states[0].state2.blocksize)
            self.register_buffer("nested", torch.stack([state.state2.absmax for state in states]))
            self.register_buffer("offset", torch.stack([state.offset for state in states]))
            self.register_buffer("code", states[0].state2.code)

    def unpacked(self, expert: int) -> Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        outer: dict[str, Any] = {}
        if self._double:
            nested = QuantState(
                self.nested[expert], code=self.code, blocksize=self._nested_block, dtype=self.nested.dtype
            )
            outer = {"offset": self.offset[expert], "state2": nested}
        # As one row: see `_check_rows`.
        flat = torch.Size([1, self.shape[1:].numel()])
        state = QuantState(
            self.absmax[expert], shape=flat, blocksize=self._block, quant_type=self._kind, dtype=self.dtype, **outer
        )
        weight_OI: Tensor = dequantize_4bit(self.packed[expert][:, None], state).view(self.shape[1:])
        return weight_OI


class Experts8Bit(PackedExperts):
    """Whole numbers from -127 to 127 and one scale per row of each expert (arXiv 2208.07339, without outliers)."""

    scale: Tensor

    def __init__(self, weight_EOI: Tensor) -> None:
        super().__init__(weight_EOI)
        scale_EO = weight_EOI.abs().amax(-1).float().clamp_min(torch.finfo(torch.float32).tiny) / 127
        packed_EOI = torch.empty_like(weight_EOI, dtype=torch.int8)
        for packed_OI, weight_OI, scale_O in zip(packed_EOI, weight_EOI, scale_EO):
            packed_OI.copy_((weight_OI / scale_O[:, None]).round_())
        self.packed = nn.Parameter(packed_EOI, requires_grad=False)
        self.register_buffer("scale", scale_EO)

    def unpacked(self, expert: int) -> Tensor:
        packed_OI = self.packed[expert]
        weight_OI = torch.empty_like(packed_OI, dtype=self.dtype)
        return torch.mul(packed_OI, self.scale[expert][:, None], out=weight_OI)


# --- while loading --------------------------------------------------------------------------------------------


@contextmanager
def experts_packed() -> Iterator[None]:
    """Within the block, models that transformers loads and quantises with bitsandbytes get packed experts."""
    ours = {"bitsandbytes_4bit": _Bnb4BitWithExperts, "bitsandbytes_8bit": _Bnb8BitWithExperts}
    before = {name: AUTO_QUANTIZER_MAPPING[name] for name in ours}
    AUTO_QUANTIZER_MAPPING.update(ours)
    try:
        yield
    finally:
        AUTO_QUANTIZER_MAPPING.update(before)


def experts_parameters(model: nn.Module, kept: list[str]) -> set[str]:
    """Names of the 3-D parameters of `model` that are packed, but for modules in `kept` (patterns of transformers').

    They are those of the modules that transformers' `use_experts_implementation` marks, whose forwards are known to
    index one expert at a time.
    """
    return {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if hasattr(type(module), "_apply_gate") and should_convert_module(name, kept)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and should_convert_module(f"{name}.{own}", kept)
    }


def kept_modules(model: Any, given: list[str] | None) -> list[str] | None:
    """Modules that stay as they are, from a recipe's `llm_int8_skip_modules`; None leaves it to transformers.

    The user's list stands in the place of transformers' own, which has the output head; the losses need that whole.
    """
    if given is None:
        return None
    head = model.get_output_embeddings()
    return [*given, *(name for name, module in model.named_modules() if module is head)]


class _WithExperts:
    """What is added to transformers' bitsandbytes quantisers; nothing is for checkpoints that are quantised already."""

    quantization_config: Any
    pre_quantized: bool
    modules_to_not_convert: list[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names: set[str] = set()
        self.made: dict[str, PackedExperts] = {}

    def pack(self, weight_EOI: Tensor) -> PackedExperts:
        raise NotImplementedError

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        above: Any = super()
        return param_name in self._names or above.param_needs_quantization(model, param_name, **kwargs)

    def get_quantize_ops(self) -> Any:
        above: Any = super()
        return _Pack(self, above.get_quantize_ops())

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        above: Any = super()
        config = self.quantization_config
        if not self.pre_quantized:
            config.llm_int8_skip_modules = kept_modules(model, config.llm_int8_skip_modules)
        above._process_model_before_weight_loading(model, **kwargs)
        if not self.pre_quantized:
            self._names = experts_parameters(model, self.modules_to_not_convert)
        if self._names:
            # The one of transformers' experts forwards that indexes one expert at a time; others take all at once.
            model.set_experts_implementation("eager")

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        above: Any = super()
        for name, packed in self.made.items():
            module, own = get_module_from_name(model, name)
            del module._parameters[own]
            module.add_module(own, packed)
        return above._process_model_after_weight_loading(model, **kwargs)

    def is_serializable(self) -> bool:
        above: Any = super()
        return not self._names and above.is_serializable()


class _Pack(ConversionOps):
    """Packs experts, and passes what else is quantised to `others`."""

    def __init__(self, quantizer: _WithExperts, others: Any) -> None:
        self._quantizer, self._others = quantizer, others

    @torch.no_grad()
    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for name, value in input_dict.items():
            if name not in self._quantizer._names:
                result |= self._others.convert({name: value}, **kwargs)
                continue
            packed = self._quantizer.pack(value[0] if isinstance(value, list) else value)
            self._quantizer.made[name] = packed
            # transformers puts this where the 3-D parameter was; after loading, `packed` takes its place.
            result[name] = packed.packed
        return result


class _Bnb4BitWithExperts(_WithExperts, Bnb4BitHfQuantizer):
    def pack(self, weight_EOI: Tensor) -> PackedExperts:
        config = self.quantization_config
        return Experts4Bit(weight_EOI, kind=config.bnb_4bit_quant_type, double=config.bnb_4bit_use_double_quant)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        model = super()._process_model_after_weight_loading(model, **kwargs)
        for name, module in model.named_modules():
            if type(module).__name__ != "Linear4bit":
                continue
            if module.compute_dtype != torch.bfloat16 or module.out_features % 32:
                # On CPUs with AVX512-BF16, bitsandbytes would round to bfloat16 and knows no other numbers of rows.
                module.support_avx512bf16_for_cpu = False
            if module.weight.device.type == "cpu":
                _check_rows(name, module)
        return model


def _check_rows(name: str, module: Any) -> None:
    """Refuses layers that bitsandbytes unpacks wrongly.

    Its code for CPUs with AVX512 starts a block with every row, which quantising does not (seen in 0.50): weights of
    rows that are no whole number of blocks, unless that is how it comes out, get the scales of their neighbours.
    """
    from bitsandbytes.functional import dequantize_4bit

    state = module.weight.quant_state
    if state.shape[-1] % state.blocksize == 0:
        return
    row = copy(state)
    row.shape = torch.Size([1, state.shape.numel()])
    as_it_is, as_one_row = (dequantize_4bit(module.weight.data, each).flatten() for each in (state, row))
    if not torch.equal(as_it_is, as_one_row):
        raise ValueError(
            f"on this CPU bitsandbytes unpacks {name} wrongly, whose rows of {state.shape[-1]} weights are no whole "
            f"number of blocks of {state.blocksize}; use a GPU or `load_in_8bit: true`"
        )


class _Bnb8BitWithExperts(_WithExperts, Bnb8BitHfQuantizer):
    def pack(self, weight_EOI: Tensor) -> PackedExperts:
        return Experts8Bit(weight_EOI)
