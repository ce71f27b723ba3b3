"""Whether the optimiser of a training can be built here, asked before any data or model is read."""

from __future__ import annotations

from transformers import Trainer, TrainingArguments

from preceptor.errors import InputError, first_sentence, shown
from preceptor.training.engine_checks import wants_fsdp


def check_optimizer(arguments: TrainingArguments) -> None:
    """Refuses an optimiser whose package is not installed, or that cannot do what the training asks of it.

    Raises:
        InputError: naming the optimiser and what to do.
    """
    name = str(getattr(arguments.optim, "value", arguments.optim))
    try:
        kind, _ = Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"training.optim: {shown(name)} needs a package that is not installed ({first_sentence(error)}); install "
            "it, or take adamw_torch, which needs none"
        ) from error
    except ValueError:
        return  # some can only be built with the model; what is wrong with the others, Trainer says
    if "bitsandbytes" in str(kind) and wants_fsdp(arguments):
        raise InputError(
            f"training.optim: {shown(name)} is of bitsandbytes, whose optimisers cannot update weights cut over "
            "several processes (FSDP); take adamw_torch_8bit of torchao, or adamw_torch"
        )
