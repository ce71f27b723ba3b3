"""The arguments of `DistillationTrainer`, settled: what was given in TRL's way becomes what the trainer works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from preceptor.data.chat import EncodedRow, Targets
from preceptor.data.collator import Collator
from preceptor.data.mixture import Mixture
from preceptor.errors import InputError, shown
from preceptor.objective import Logits, Objective
from preceptor.objective.terms import Term
from preceptor.signals import Teacher
from preceptor.training.arguments.models import padding_token, share_tokenizer, student_of, teacher_of, tokenizer_of
from preceptor.training.arguments.rows import encode, is_encoded
from preceptor.training.arguments.settings import (
    RowSettings,
    check_settings,
    model_settings,
    padding_multiple,
    row_settings,
)

EvalRows = Sequence[EncodedRow] | Mapping[str, Sequence[EncodedRow]]


@dataclass(frozen=True)
class Given:
    """What the trainer works with; `tokenizer` is None where everything was encoded already."""

    model: PreTrainedModel | nn.Module
    args: TrainingArguments
    objective: Objective
    teacher: Teacher | None
    calibration: Sequence[EncodedRow]
    train_rows: Dataset[EncodedRow] | Sequence[EncodedRow] | None
    eval_rows: EvalRows | None
    collator: Collator
    tokenizer: PreTrainedTokenizerBase | None
    settings: RowSettings

    def rows(self, rows: Any, where: str = "eval_dataset") -> Any:
        """`rows` encoded, if they are not; of a mapping each value."""
        if isinstance(rows, Mapping):
            return {name: self.rows(each, f"{where}[{name!r}]") for name, each in rows.items()}
        return _encoded(rows, where, self.objective, self.tokenizer, self.settings)


def settle(
    model: Any,
    args: TrainingArguments | None,
    *,
    objective: Objective | Sequence[Term] | None,
    teacher: Any,
    train_dataset: Any,
    eval_dataset: Any,
    calibration: Any,
    data_collator: Any,
    processing_class: Any,
    peft_config: Any,
    max_length: int | None,
    targets: Targets | None,
    formatting_func: Callable[[dict[str, Any]], str] | None,
    others: Mapping[str, Any],
) -> Given:
    """See `DistillationTrainer`, whose arguments these are; `others` go to Trainer.

    Raises:
        InputError: whatever is wrong with them, in one sentence.
    """
    if args is None:
        args = TrainingArguments(output_dir=f"{_name(model)}-distilled")
    if not isinstance(model, str | Path | nn.Module):
        raise InputError(f"model: {shown(model)} is no model; give a transformers model, its folder or its Hub id")
    check_settings(args, others)
    settings = row_settings(args, max_length=max_length, targets=targets, formatting=formatting_func)
    of_model = model_settings(args)
    trust = bool(of_model.get("trust_remote_code"))
    ready = data_collator is not None and is_encoded(train_dataset) and _all_encoded(eval_dataset)
    tokenizer = None
    if processing_class is not None or not ready or isinstance(teacher, str | Path):
        tokenizer = tokenizer_of(processing_class, model, of_model)
    if tokenizer is None and not ready:
        raise InputError("processing_class: is missing; give the student's tokenizer")
    if tokenizer is not None and isinstance(teacher, str | Path):
        share_tokenizer(tokenizer, teacher, trust_remote_code=trust)
    objective = _objective(objective, teacher, tokenizer)
    if data_collator is None:
        assert tokenizer is not None
        data_collator = Collator(
            padding_token(tokenizer), route_names=objective.route_names, pad_to_multiple_of=padding_multiple(args)
        )
    elif not isinstance(data_collator, Collator):
        raise InputError(
            f"data_collator: {shown(data_collator)} marks no targets; leave it out, or give a preceptor.Collator"
        )
    # Rows before models: what is wrong with them is said in a second.
    given = Given(nn.Identity(), args, objective, None, (), None, None, data_collator, tokenizer, settings)
    rows = _encoded(train_dataset, "train_dataset", objective, tokenizer, settings)
    shown_first = given.rows(calibration, "calibration") if len(calibration) else []
    if not is_encoded(train_dataset):
        if not shown_first and objective.attention is not None:
            shown_first = rows[: objective.attention.calibration_rows]
        rows = _in_steps(rows, args, data_collator.pad_token_id)
    given = replace(given, calibration=shown_first, train_rows=rows, eval_rows=given.rows(eval_dataset))
    if isinstance(model, str | Path) or peft_config is not None:
        set_seed(args.seed)  # before an adapter's weights are drawn
    student = student_of(model, args, of_model, peft_config)
    taught = teacher_of(teacher, student, tokenizer, args, trust_remote_code=trust)
    return replace(given, model=student, teacher=taught)


def _name(model: Any) -> str:
    path = str(model) if isinstance(model, str | Path) else getattr(model, "name_or_path", "")
    return Path(path).name or "student"


def _all_encoded(rows: Any) -> bool:
    return all(map(is_encoded, rows.values())) if isinstance(rows, Mapping) else is_encoded(rows)


def _objective(
    given: Objective | Sequence[Term] | None, teacher: Any, tokenizer: PreTrainedTokenizerBase | None
) -> Objective:
    if isinstance(given, Objective):
        return given
    if given is None and teacher is None:
        raise InputError(
            "teacher: is missing; give a model, its folder or Hub id, or an objective without a teacher: "
            "`objective=[preceptor.NextToken()]`"
        )
    return Objective([Logits()] if given is None else given, vocabulary=None if tokenizer is None else len(tokenizer))


def _encoded(
    rows: Any, where: str, objective: Objective, tokenizer: PreTrainedTokenizerBase | None, settings: RowSettings
) -> Any:
    if is_encoded(rows):
        return rows
    if tokenizer is None:
        raise InputError(f"{where}: its rows are not encoded; give the student's tokenizer as `processing_class`")
    routes = objective.route_names
    if len(routes) > 1:
        raise InputError(
            f"{where}: its rows are on one route and the objective has {len(routes)} ({', '.join(routes)}); encode "
            "each dataset with preceptor.load_rows under the name of its route"
        )
    return encode(rows, where, dataset=routes[0], tokenizer=tokenizer, settings=settings)


def _in_steps(rows: Sequence[EncodedRow], args: TrainingArguments, pad_token_id: int) -> Dataset[EncodedRow]:
    """The rows in a stage's order, which knows neither the batch size nor the number of processes.

    A last short step is filled with rows without targets instead of repeating some.
    """
    if args.train_sampling_strategy != "random":
        raise InputError(
            f"args.train_sampling_strategy: {args.train_sampling_strategy!r} would not be followed by "
            "DistillationTrainer, which draws rows in a new random order in each epoch; leave it out"
        )
    name = rows[0].dataset
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return Mixture(
        {name: rows},
        shares={name: 1.0},
        seed=args.seed if args.data_seed is None else args.data_seed,
        multiple_of=per_step,
        pad_token_id=pad_token_id,
    )
