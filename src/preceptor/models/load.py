"""Loading a student or a teacher, so that whatever is wrong with it comes out as one sentence for the user.

transformers loads a checkpoint with missing weights after a warning and draws them at random; a teacher
like that is worth nothing, so here it is an error. Students are loaded in float32 (transformers 5 keeps a
bfloat16 checkpoint in bfloat16, where at a learning rate of 2e-5 most updates round to nothing); teachers
keep their checkpoint's dtype.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from preceptor.errors import InputError, first_sentence, shown
from preceptor.models.adapters import LOADING_ERRORS, merged, put_adapter
from preceptor.models.checkpoint import Checkpoint, check_model, source_dtype
from preceptor.models.quantization import by_bitsandbytes, loaded_dtype, quantization_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from preceptor.recipe import ModelSpec

_LAYER = re.compile(r"(.*\b(?:layers|h|blocks))\.(\d+)\.")
"""A tensor of a layer: in which list of layers, and which one of it."""

__all__ = ["check_model", "load_model", "source_dtype"]


def load_model(spec: ModelSpec, *, role: Literal["student", "teacher"]) -> PreTrainedModel:
    """Loads a causal language model from safetensors; never from a pickle.

    A student's floating parameters are float32 unless `spec.dtype` says otherwise; its adapter, if any, is
    merged into the weights in that precision. A teacher keeps its checkpoint's dtype, is in evaluation mode
    and has no parameter that wants a gradient; its adapter stays beside the base weights, inside the model
    that is returned. Without `device_map` the model is on the CPU and the caller moves it.

    Raises:
        InputError: whatever `check_model` refuses; weights missing from the checkpoint or of another shape
            than the config says; a quantisation library that is not installed; a quantised output head; an
            adapter made for another base.
    """
    where = f"model {spec.path!r}"
    checkpoint = check_model(spec)
    quantization = quantization_config(spec)
    if role == "student" and spec.adapter is not None and quantization is not None:
        raise InputError(
            f"{where}: a student's `adapter` is merged into its weights, which quantised weights cannot "
            "take; "
            "leave out `quantization`, or merge the adapter first"
        )
    dtype = loaded_dtype(spec, checkpoint, role)
    options: dict[str, Any] = {
        "dtype": dtype,
        "use_safetensors": True,
        "trust_remote_code": spec.trust_remote_code,
    }
    if quantization is not None:
        options["quantization_config"] = quantization
        if by_bitsandbytes(spec) and "bnb_4bit_compute_dtype" not in (spec.quantization or {}):
            # bitsandbytes would multiply in float32, whatever the weights were.
            stored = torch.float32 if checkpoint.dtype == torch.float64 else checkpoint.dtype
            quantization.bnb_4bit_compute_dtype = dtype if role == "teacher" else stored
    if spec.device_map is not None:
        options["device_map"] = spec.device_map
    model = _from_pretrained(checkpoint, options, where)
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear) and not head.weight.is_floating_point():
        raise InputError(
            f"{where}: its output head is quantised ({head.weight.dtype}), and the losses read the head whole; "
            "use a checkpoint quantised without its head, or the unquantised one with `quantization`"
        )
    if quantization is not None and _experts_are_packed(model):
        model.set_experts_implementation("eager")  # others take all experts at once, which such tensors do not know
    # Cards and adapters name the model they came from: the recipe's word for it, not a folder of the cache.
    model.config._name_or_path = spec.path
    model.name_or_path = spec.path
    if checkpoint.adapter is not None:
        wrapped = put_adapter(model, checkpoint.adapter, str(spec.adapter))
        # Without merging, the adapter's layers are inside the base model.
        model = merged(wrapped) if role == "student" else wrapped.get_base_model()
    if role == "student":
        if spec.dtype is None:
            _upcast(model)
        return model
    model.eval()
    model.requires_grad_(False)
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' progress bars and reports, many lines in a pipe; we report ourselves."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _from_pretrained(checkpoint: Checkpoint, options: dict[str, Any], where: str) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    from preceptor.models.quantized_experts import experts_packed

    try:
        with quiet_transformers(), experts_packed():
            # Shapes that differ are reported with the missing names below; transformers' own error names
            # none.
            model, report = AutoModelForCausalLM.from_pretrained(
                str(checkpoint.folder), output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except torch.OutOfMemoryError:
        raise
    except ImportError as error:
        raise InputError(f"{where}: needs a package that is not installed ({first_sentence(error)})") from error
    except (*LOADING_ERRORS, AssertionError) as error:
        raise InputError(f"{where}: could not be loaded ({first_sentence(error)})") from error
    except Exception as error:
        # huggingface_hub checks a config's values with an exception that is neither ValueError nor TypeError.
        if type(error).__name__.startswith("StrictDataclass"):
            raise InputError(f"{where}: config.json is not valid ({' '.join(str(error).split())})") from error
        raise
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, stored, wanted = mismatched[0]
        raise InputError(
            f"{where}: {_tensors(len(mismatched))} of another shape than config.json says, first {name!r} "
            f"({list(stored)} stored, {list(wanted)} expected); the config and the weights belong to "
            "different models"
        )
    if report["missing_keys"]:
        raise InputError(
            f"{where}: {_tensors(len(report['missing_keys']))} missing from the weights, first "
            f"{min(report['missing_keys'])!r}; the config and the weights belong to different models"
        )
    if further := sorted(_uncounted(model, report["unexpected_keys"])):
        # Without a word transformers leaves out the layers that a config does not count.
        raise InputError(
            f"{where}: {_tensors(len(further))} in the weights and not in the model that config.json describes, first "
            f"{shown(further[0])}; the config and the weights belong to different models"
        )
    return model


def _uncounted(model: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """Those of the unexpected tensors that are further layers of the decoder.

    Others are none of a config's mistakes: buffers that older releases stored in a layer, scales of a quantiser, towers
    for images, and the layers for predicting several tokens that DeepSeek and GLM number on.
    """
    prefix = f"{model.base_model_prefix}."
    lists: dict[str, int] = {}
    for name, _ in model.named_parameters():
        if found := _LAYER.match(name.removeprefix(prefix)):
            lists[found[1]] = max(lists.get(found[1], 0), int(found[2]) + 1)
    said = model.config.get_text_config().to_dict()
    more = [value for key, value in said.items() if ("nextn" in key or "mtp" in key) and type(value) is int]
    extra = max(more, default=0)
    return [
        name
        for name in unexpected
        if (found := _LAYER.match(name.removeprefix(prefix))) and int(found[2]) >= lists.get(found[1], math.inf) + extra
    ]


def _tensors(count: int) -> str:
    return "1 tensor is" if count == 1 else f"{count} tensors are"


def _experts_are_packed(model: PreTrainedModel) -> bool:
    """Whether the 3-D parameters of experts are of a quantiser's own kind of tensor (torchao's)."""
    from preceptor.models.quantized_experts import experts_parameters

    return any(type(model.get_parameter(name).data) is not torch.Tensor for name in experts_parameters(model, []))


def _upcast(model: nn.Module) -> None:
    """Makes the plain floating parameters float32; packed quantised weights are of other types and stay."""
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter and parameter.is_floating_point():
            parameter.data = parameter.data.float()
