"""Student, tokenizer and teacher from what they may be given as: objects, folders, Hub ids, a PEFT config."""

from __future__ import annotations

import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments

from preceptor.data.template import choose_template
from preceptor.errors import InputError, shown
from preceptor.models.load import load_model
from preceptor.models.tokenizers import check_tokenizer_fits, load_tokenizer, same_tokenizer
from preceptor.recipe import ModelSpec
from preceptor.signals import Teacher
from preceptor.teachers import ModelTeacher
from preceptor.training.engine import models_read_whole

_LOG = logging.getLogger("preceptor")


def student_of(model: Any, args: TrainingArguments, settings: dict[str, Any], peft_config: Any) -> nn.Module:
    """The student: `model`, loaded in float32 where it is a path or Hub id, with a fresh adapter of `peft_config`.

    Raises:
        InputError: what loading refuses, or a PEFT config that does not fit the model or is not a LoRA's like.
    """
    if isinstance(model, str | Path):
        with models_read_whole(args):
            model = load_model(ModelSpec(path=str(model), **settings), role="student")
    elif settings.keys() - {"trust_remote_code"}:
        raise InputError(
            "args.model_init_kwargs: the model is loaded already, so that they would not be followed; leave them out"
        )
    return model if peft_config is None else _adapted(model, args, peft_config)


def _adapted(model: Any, args: TrainingArguments, peft_config: Any) -> nn.Module:
    from peft import PeftConfig, PeftModel, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        raise InputError(f"peft_config: {shown(peft_config)} is none of PEFT's configs; give a peft.LoraConfig")
    if isinstance(model, PeftModel):
        raise InputError("peft_config: the model has an adapter already; give one of the two")
    if peft_config.is_prompt_learning:
        raise InputError(
            f"peft_config: is of kind {peft_config.peft_type.value}, which adds prompt tokens; only adapters that "
            "change layers (LoRA and its relatives) are accepted"
        )
    try:
        adapted: nn.Module = get_peft_model(model, deepcopy(peft_config))  # PEFT writes into it
    except ValueError as error:
        raise InputError(f"peft_config: PEFT refuses it: {str(error).splitlines()[0]}") from error
    if args.gradient_checkpointing:
        model.enable_input_require_grads()  # reentrant checkpointing sees gradients only through its inputs
    return adapted


def tokenizer_of(given: Any, model: Any, settings: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    """The tokenizer: the one given, else the one beside the model's weights; None if there is none.

    `model` is the model as it was given.
    """
    if isinstance(given, ProcessorMixin):
        given = given.tokenizer
    if given is not None:
        if not isinstance(given, PreTrainedTokenizerBase):
            raise InputError(f"processing_class: {shown(given)} is no tokenizer; give one of transformers'")
        return given
    path = str(model) if isinstance(model, str | Path) else getattr(model, "name_or_path", "")
    if not path:
        return None
    known = {key: value for key, value in settings.items() if key in ("revision", "trust_remote_code")}
    return load_tokenizer(ModelSpec(path=path, **known))


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with, which is masked everywhere: its own, else its end token's."""
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id):
        if isinstance(found, int):
            return found
    raise InputError("processing_class: has neither a padding nor an end token; set `pad_token`")


def share_tokenizer(tokenizer: PreTrainedTokenizerBase, teacher: str | Path, *, trust_remote_code: bool) -> None:
    """Makes sure that a teacher that is a path has the student's tokenizer, whose chat template it gives if need be.

    Raises:
        InputError: naming where the two differ.
    """
    theirs = load_tokenizer(ModelSpec(path=str(teacher), trust_remote_code=trust_remote_code))
    same_tokenizer(tokenizer, theirs)
    if tokenizer.chat_template is None and theirs.chat_template is not None:
        choose_template(tokenizer, theirs)
        _LOG.warning("the tokenizer has no chat template; the teacher's is used and saved with it")


def teacher_of(
    teacher: Any,
    student: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    args: TrainingArguments,
    *,
    trust_remote_code: bool = False,
) -> Teacher | None:
    """The teacher: as it is, or a ModelTeacher around the model given or loaded from a folder or Hub id.

    A model goes to the device of the training, unless a `device_map` or its quantisation has put it somewhere.

    Raises:
        InputError: what loading refuses, or the student itself.
    """
    if isinstance(teacher, str | Path):
        spec = ModelSpec(path=str(teacher), trust_remote_code=trust_remote_code)
        with models_read_whole(args):
            teacher = load_model(spec, role="teacher")
        if tokenizer is not None:
            check_tokenizer_fits(tokenizer, teacher)
    if isinstance(teacher, nn.Module):
        if teacher is student or any(teacher is module for module in student.modules()):
            raise InputError("teacher: is the student itself, which would be frozen; load the model a second time")
        return ModelTeacher(_placed(teacher, args.device))
    if teacher is not None and not callable(teacher):
        raise InputError(
            f"teacher: {shown(teacher)} is no teacher; give a model, its folder or Hub id, or a ModelTeacher, "
            "RoutedTeacher or StoredTeacher"
        )
    given: Teacher | None = teacher
    return given


def _placed(model: nn.Module, device: torch.device) -> nn.Module:
    put = getattr(model, "hf_device_map", None) is not None
    packed = isinstance(model, PreTrainedModel) and getattr(model, "is_quantized", False)
    return model if put or packed else model.to(device)
