"""Where losses and teachers look into a transformers model: the attention function and the output head.

Both places are *inside* the model's forward. No weight is read outside its module's forward, so the hooks of DDP,
FSDP2, ZeRO and PEFT see every weight a loss uses (reading a head outside it under FSDP2 raises, or gives gradients
wrong by 25-100 %).

The attention functions registered in transformers are wrapped in place, for the time of a `with attention_taps():`
block, so that names, masks and flash checks stay valid. The wrapper does nothing unless the call carries an observer,
which travels as a keyword argument of the model's forward: other models in the process are left alone, and a
recomputation under gradient checkpointing meets the observer of its own forward.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from preceptor.errors import InputError
from preceptor.models.calls import AttentionCall
from preceptor.models.offload import forward_attribute
from preceptor.models.opaque import Seat, attention_seen
from preceptor.signals import Head

SEAT = "preceptor_seat"
"""Keyword argument under which an observer travels in its seat through a model's forward to its attention functions."""
UNREADABLE = {"s_aux": "attention sinks", "position_bias": "a position bias"}
"""Keyword arguments of attention functions that queries and keys do not tell."""


class Observer(Protocol):
    """Sees the inside of one forward; that of a compiled model only where it is a `CompiledObserver` too."""

    def at_attention(self, call: AttentionCall, output: Tensor) -> Tensor:
        """Take what is wanted from `call`; return `output`, or an identity on it with another backward."""

    def at_head(self, head: Head, hidden_BSD: Tensor) -> Tensor:
        """Stands in for the head's forward; the model passes the result on as if it were logits."""

    def result(self, output: Tensor) -> dict[str, Tensor]:
        """What the model's forward returns; `output` is what `at_head` returned, as it came out of the head's hooks."""


# --- the output head ------------------------------------------------------------------------------------------


def forward_observed(model: nn.Module, student: nn.Module, inputs: Mapping[str, Any], observer: Observer) -> Any:
    """Run `model` (the student as its engine wrapped it: DDP, FSDP2, ...) on `inputs` with `observer` inside.

    `student` is the unwrapped transformers or PEFT model. The forwards of its head and of itself are replaced for the
    duration of the call: engines call them through their modules' hooks, so weights are whole where they are used,
    and what the observer returns is an output of the forward, so engines see the loss.
    """
    head = output_head(student)
    inner_forward = student.forward

    def head_forward(hidden_BSD: Tensor) -> Tensor:
        return observer.at_head(read_head(head, student), hidden_BSD)

    outputs: list[Tensor] = []

    def student_forward(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        inner_forward(*args, **kwargs)
        assert outputs, "the model's forward did not call its output head"
        return observer.result(outputs.pop())

    # ZeRO-3 gathers the head's weight for the backward when that comes through what its hook made of the output.
    last = head.register_forward_hook(lambda module, given, output: outputs.append(output))
    try:
        # Inside the hooks that fetch the head's weight, where there are some.
        with replaced(head, forward_attribute(head), head_forward), replaced(student, "forward", student_forward):
            return model(**inputs, **{SEAT: Seat(observer)})
    finally:
        last.remove()


def output_head(model: nn.Module) -> nn.Linear:
    """The linear module that makes the logits, under any PEFT wrapper.

    Raises:
        InputError: when the model has none, or when PEFT adapts it in a way that hides the weight in use.
    """
    head: Any = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else _peft_head(model)
    if isinstance(head, nn.Linear):
        return head
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    if isinstance(head, ModulesToSaveWrapper):
        on = [] if head.disable_adapters else head.active_adapters
        inner = head.modules_to_save[on[0]] if on else head.original_module
        if isinstance(inner, nn.Linear):
            return inner
    if isinstance(head, BaseTunerLayer):
        raise InputError(
            "lora.target_modules: adapts the output head, whose weight the losses must see whole; leave the head out, "
            "or train it in full with `modules_to_save: [lm_head]`"
        )
    raise InputError(
        f"{type(model).__name__} has no linear output head to compute the losses in; accepted are transformers' causal "
        "language models (AutoModelForCausalLM)"
    )


def _peft_head(model: nn.Module) -> Any:
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return None
    return model.get_base_model().get_output_embeddings()


def read_head(head: nn.Linear, model: nn.Module) -> Head:
    """The head with the scale and soft-cap that `model` applies to its logits (Cohere, Granite, Gemma 2).

    Raises:
        InputError: when the weight is not whole inside the head's forward, as with tensor parallelism.
    """
    if isinstance(head.weight, DTensor):
        raise InputError(
            f"{type(model).__name__}: its output head is split over processes while it computes (tensor parallelism), "
            "and the losses need whole rows of logits; load it without tp_plan, and share it out with fsdp or deepspeed"
        )
    config = text_config(model)
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(head.weight, head.bias, scale, getattr(config, "final_logit_softcapping", None))


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model inside a transformers or PEFT model."""
    return model.config.get_text_config()  # type: ignore[union-attr, operator]


@contextmanager
def replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of an instance or a module for the duration of the block, restoring whether there was one."""
    had, old = name in holder.__dict__, holder.__dict__.get(name)
    holder.__dict__[name] = value
    try:
        yield
    finally:
        if had:
            holder.__dict__[name] = old
        else:
            del holder.__dict__[name]


# --- the attention function -----------------------------------------------------------------------------------

AttentionFunction = Callable[..., tuple[Tensor, Any]]
_depth = 0


class _Running(threading.local):
    """On this thread, the observer that the last call of an attention function carried."""

    observer: Callable[[], Observer | None] = staticmethod(lambda: None)


_running = _Running()


def layer_observer() -> Observer | None:
    """The observer of what runs behind attention in the same layer, also when a checkpointed layer is recomputed."""
    return _running.observer() if taps_active() else None  # of a forward that is over, where nothing is tapped


@contextmanager
def attention_taps() -> Iterator[None]:
    """Let observers see attention, in forwards *and backwards* run within the block (checkpoints recompute there)."""
    global _depth
    mapping = type(ALL_ATTENTION_FUNCTIONS)._global_mapping
    if _depth == 0:
        saved = dict(mapping)
        for name, function in saved.items():
            mapping[name] = _tapped(function)
        # "eager" is not in the registry: every modelling file has its own, used when the name is not found.
        mapping["eager"] = _tapped(_module_eager)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            mapping.clear()
            mapping.update(saved)


def taps_active() -> bool:
    """Whether observers see attention now."""
    return _depth > 0


def _module_eager(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    function: AttentionFunction = sys.modules[type(module).__module__].eager_attention_forward
    return function(module, *args, **kwargs)


def _tapped(function: AttentionFunction) -> AttentionFunction:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        seat: Seat | None = kwargs.pop(SEAT, None)
        if seat is not None:
            query, key = _as_multiplied(query), _as_multiplied(key)
        if torch.compiler.is_dynamo_compiling():
            if seat is not None and seat.attention:
                key = attention_seen(module, seat, query, key, value, **_how(query, kwargs))
            return function(module, query, key, value, *args, **kwargs)
        observer: Observer | None = None if seat is None else seat.observer
        # Weakly: nothing of a step may outlive it.
        _running.observer = (lambda: None) if observer is None else weakref.ref(observer)
        output, maps = function(module, query, key, value, *args, **kwargs)
        if observer is None:
            return output, maps
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        call = AttentionCall(layer, query, key, value, **_how(query, kwargs))
        return observer.at_attention(call, output), maps

    return attend


def _as_multiplied(tensor: Tensor) -> Tensor:
    """In the dtype that attention multiplies in: rotary embeddings make float32 of what autocast then rounds again."""
    device = tensor.device.type
    if tensor.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


def _how(query: Tensor, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """How an attention function that is called with `kwargs` uses queries and keys."""
    scale = kwargs.get("scaling")
    return {
        "scale": float(query.shape[-1] ** -0.5 if scale is None else scale),
        "window": kwargs.get("sliding_window"),
        "softcap": kwargs.get("softcap"),
        "unreadable": next((why for name, why in UNREADABLE.items() if kwargs.get(name) is not None), None),
    }
