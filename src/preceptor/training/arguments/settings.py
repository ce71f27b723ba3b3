"""Settings of TRL's configs and of Trainer: those that are followed, and by name those that would do nothing here.

A setting that is silently ignored costs a training: whatever differs from its default and is not followed is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass
from typing import Any

from transformers import TrainingArguments

from preceptor.data.chat import Targets
from preceptor.errors import InputError, accepted, shown

MAX_LENGTH = 1024
"""Tokens of a row where nobody says: TRL's default, so that one dataset gives both trainers the same rows."""

_FOLLOWED = {
    "max_length",
    "dataset_text_field",
    "completion_only_loss",
    "assistant_only_loss",  # answers alone are targets in any case; `targets="all"` is the other one
    "pad_to_multiple_of",
    "model_init_kwargs",
    "trust_remote_code",
    "dataset_num_proc",  # without effect on a result
    "shuffle_dataset",  # so is this: rows are drawn in a new order in every epoch
}
_INSTEAD = {
    "packing": "give `data_collator=preceptor.Collator(..., packing=True, max_length=...)`, which packs the rows of a "
    "micro-batch",
    "eval_packing": "evaluation sums over targets, packed or not",
    "chat_template_path": "set `processing_class.chat_template`",
    "eos_token": "set `processing_class.eos_token`",
    "pad_token": "set `processing_class.pad_token`",
    "router_aux_loss_coef": "add `preceptor.RouterBalance(weight)` to `objective`",
    "teacher_model_name_or_path": "give `teacher=`",
    "temperature": "give `objective=[preceptor.Logits(temperature=...)]`",
    "beta": "give `objective=[preceptor.Logits(divergence=...)]`",
}
_OF_TRAINER = {
    "teacher_model": "it is called `teacher` here",
    "compute_loss_func": "the loss is the objective's; give `objective=`",
    "compute_metrics": "no logits are gathered; `evaluate()` gives every term of the objective",
    "preprocess_logits_for_metrics": "no logits are gathered; `evaluate()` gives every term of the objective",
    "quantization_config": "load the model yourself and give it as `model`",
    "model_init": "load the model yourself and give it as `model`",
    "tools": "conversations with tools are not read",
}
_MODEL_INIT = ("revision", "dtype", "torch_dtype", "device_map", "trust_remote_code")


@dataclass(frozen=True)
class RowSettings:
    """How given rows become tokens.

    max_length: tokens; what is longer is cut at the end.
    text_column: the column of plain text.
    targets: "assistant" or "all"; None: answers and completions, and all of plain text.
    completion_only: TRL's `completion_only_loss`; assistant_only: its `assistant_only_loss`.
    formatting: makes plain text of a record, where given.
    """

    max_length: int
    text_column: str = "text"
    targets: Targets | None = None
    completion_only: bool | None = None
    assistant_only: bool = False
    formatting: Callable[[dict[str, Any]], str] | None = None


def check_settings(args: TrainingArguments, others: Mapping[str, Any]) -> None:
    """Raises InputError for a setting of `args`, or one of Trainer's own arguments `others`, that would do nothing."""
    for name, value in others.items():
        if name in _OF_TRAINER and value is not None:
            raise InputError(f"{name}: is not used by DistillationTrainer: {_OF_TRAINER[name]}")
    for name, field in _trl_fields(args).items():
        value = getattr(args, name)
        # TRL itself turns `auto` into None.
        if name in _FOLLOWED or value is None or value == _default(field):
            continue
        instead = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
        raise InputError(
            f"args.{name}: {shown(value)} would not be followed by DistillationTrainer; leave it out{instead}"
        )
    if args.push_to_hub:
        raise InputError(
            "args.push_to_hub: checkpoints are not pushed while training; leave it out, and call "
            "`trainer.push_to_hub()` afterwards"
        )
    if args.label_smoothing_factor:
        raise InputError(
            f"args.label_smoothing_factor: {args.label_smoothing_factor} would not be followed by DistillationTrainer, "
            "whose loss is the objective's; leave it out"
        )


def row_settings(
    args: TrainingArguments,
    *,
    max_length: int | None,
    targets: Targets | None,
    formatting: Callable[[dict[str, Any]], str] | None,
) -> RowSettings:
    """The settings of `args` where it is TRL's, our own arguments before them.

    Raises:
        InputError: for a `targets` that is neither word, or a `max_length` below 2.
    """
    if targets not in (None, "assistant", "all"):
        raise InputError(f"targets: {shown(targets)} is not known; accepted are {accepted(['assistant', 'all'])}")
    theirs = {name: getattr(args, name) for name in _trl_fields(args)}
    limit = theirs.get("max_length", MAX_LENGTH) if max_length is None else max_length
    if limit is not None and (type(limit) is not int or limit < 2):
        raise InputError(f"max_length: {shown(limit)} tokens are not enough for one to predict another; give 2 or more")
    return RowSettings(
        max_length=sys.maxsize if limit is None else limit,
        text_column=theirs.get("dataset_text_field", "text"),
        targets=targets,
        completion_only=theirs.get("completion_only_loss"),
        assistant_only=bool(theirs.get("assistant_only_loss")),
        formatting=formatting,
    )


def padding_multiple(args: TrainingArguments) -> int | None:
    """TRL's `pad_to_multiple_of`."""
    return getattr(args, "pad_to_multiple_of") if "pad_to_multiple_of" in _trl_fields(args) else None  # noqa: B009


def model_settings(args: TrainingArguments) -> dict[str, Any]:
    """The keys of a model spec that TRL's `model_init_kwargs` and `trust_remote_code` give.

    Raises:
        InputError: for a key that is not followed.
    """
    fields = _trl_fields(args)
    given = dict(getattr(args, "model_init_kwargs", None) or {}) if "model_init_kwargs" in fields else {}
    for key in given:
        if key not in _MODEL_INIT:
            raise InputError(
                f"args.model_init_kwargs: {key!r} would not be followed by DistillationTrainer; accepted are "
                f"{accepted(_MODEL_INIT)}, or load the model yourself and give it as `model`"
            )
    dtype = given.pop("torch_dtype", given.pop("dtype", None))
    if dtype is not None:
        given["dtype"] = str(dtype).removeprefix("torch.")
    if "trust_remote_code" in fields:
        given.setdefault("trust_remote_code", args.trust_remote_code)
    return given


def _trl_fields(args: TrainingArguments) -> dict[str, Field[Any]]:
    """The fields that TRL added to those of TrainingArguments; none of a config that is not TRL's."""
    own = TrainingArguments.__dataclass_fields__
    return {
        name: field
        for kind in type(args).__mro__
        if kind.__module__.partition(".")[0] == "trl"
        for name, field in getattr(kind, "__dataclass_fields__", {}).items()
        if name not in own
    }


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
