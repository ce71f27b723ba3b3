"""The `sft` and `distill` stages: one implementation, since fine-tuning is distillation without a teacher."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, TrainingArguments, set_seed
from transformers.utils.logging import disable_progress_bar

from preceptor.data.chat import EncodedRow
from preceptor.data.collator import Collator
from preceptor.data.mixture import Mixture
from preceptor.data.prepare import PreparedDataset
from preceptor.distributed import from_main, is_main
from preceptor.errors import InputError
from preceptor.models.compiled import compile_options
from preceptor.models.load import load_model, source_dtype
from preceptor.models.sharding import count_parameters
from preceptor.models.tokenizers import check_tokenizer_fits
from preceptor.objective import Objective
from preceptor.recipe import DistillStage, SftStage
from preceptor.signals import Teacher
from preceptor.stages.allocator import keep_large_blocks_apart
from preceptor.stages.build import add_lora, build_terms, training_arguments
from preceptor.stages.context import StageContext
from preceptor.stages.determinism import determinism_ends
from preceptor.stages.encoding import stage_rows, stage_tokenizer
from preceptor.stages.faults import told
from preceptor.stages.teachers import build_teacher
from preceptor.stages.train_saving import save_trained
from preceptor.system.files import json_text, write_atomic
from preceptor.teachers import RoutedTeacher, StoredTeacher
from preceptor.trainer import DistillationTrainer
from preceptor.training.checkpoints import last_checkpoint
from preceptor.training.engine import models_read_whole
from preceptor.training.engine_checks import check_engine, shards_student, wants_fsdp
from preceptor.training.metrics import MetricsFile, PlainProgress
from preceptor.training.nonfinite import NonFiniteSteps
from preceptor.training.trackers import lead_trackers


@dataclass(frozen=True)
class _Rows:
    datasets: dict[str, PreparedDataset]

    def routes(self, names: Sequence[str]) -> list[str]:
        """The routes of all rows, dataset by dataset; those that a column gives to one dataset's rows by name."""
        found: list[str] = []
        for name in names:
            data = self.datasets[name]
            found += sorted({row.route for part in (data.train, data.holdout, data.test) for row in part})
        return list(dict.fromkeys(found))

    def all(self) -> Iterator[EncodedRow]:
        """Every row, training and held-out."""
        for data in self.datasets.values():
            yield from (*data.train, *data.holdout, *data.test)

    def held_out(self) -> dict[str, list[Any]]:
        """Evaluation rows by the name they are reported under: DATASET (its holdout) and DATASET/test."""
        parts: dict[str, list[Any]] = {}
        for name, data in self.datasets.items():
            parts |= {name: data.holdout} if data.holdout else {}
            parts |= {f"{name}/test": data.test} if data.test else {}
        return parts


@determinism_ends()
def execute(spec: SftStage | DistillStage, context: StageContext) -> dict[str, Any]:
    """Train, measure the objective on held-out rows before and after, save model and card; return the results.

    Raises:
        InputError: whatever loading models and data refuses, before any training.
    """
    disable_progress_bar()  # one per written file, in a log made of lines
    student_spec = context.resolve_model(spec.student if isinstance(spec, DistillStage) else spec.model)
    teachers = spec.teachers if isinstance(spec, DistillStage) else {}
    tokenizer = stage_tokenizer(student_spec, teachers, context)
    rows = _Rows(stage_rows(spec, tokenizer, context))
    set_seed(context.seed)
    with models_read_whole():
        student = load_model(student_spec, role="student")
    check_tokenizer_fits(tokenizer, student)
    dtype = source_dtype(student_spec)
    if spec.lora is not None:
        student = add_lora(student, spec.lora)
    trainer = _trainer(spec, context, student, tokenizer, rows)
    before = _measured_before(trainer, rows, context)
    checkpoint = from_main(lambda: _last_checkpoint(context))
    with told(trainer):
        trainer.train(resume_from_checkpoint=checkpoint)
    results = _results(trainer, rows, before)
    context.log(f"{context.name}: {_sentence(results)}")
    weights = trainer.whole_weights()  # a sharded student is gathered by all ranks
    if is_main():
        save_trained(spec, context, trainer, tokenizer, dtype, results, weights)
    return results


def _last_checkpoint(context: StageContext) -> str | None:
    path = last_checkpoint(context.directory / "checkpoints", lambda line: context.log(f"{context.name}: {line}"))
    if path is None:
        return None
    context.log(f"{context.name}: resumes from {path.name}")
    return str(path)


# --- before training --------------------------------------------------------------------------------------------


def _trainer(
    spec: SftStage | DistillStage,
    context: StageContext,
    student: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: _Rows,
) -> DistillationTrainer:
    arguments = training_arguments(spec.training, context.directory / "checkpoints", seed=context.seed, accumulation=1)
    if arguments.device.type == "cpu" and (arguments.bf16 or arguments.fp16):
        keep_large_blocks_apart()
    per_pass = arguments.per_device_train_batch_size * arguments.world_size
    if spec.rows_per_step % per_pass:
        raise InputError(
            f"stages.{context.name}.rows_per_step: {spec.rows_per_step} rows are not a whole number of passes of "
            f"{arguments.per_device_train_batch_size} rows in {arguments.world_size} process(es); change rows_per_step "
            "or training.per_device_train_batch_size"
        )
    if wants_fsdp(arguments):
        check_engine(student, arguments)
        context.log(f"{context.name}: the student is cut over {arguments.world_size} processes (FSDP)")
    arguments.gradient_accumulation_steps = spec.rows_per_step // per_pass
    assert isinstance(tokenizer.pad_token_id, int)
    mixture = _mixture(spec, context, rows, tokenizer.pad_token_id)
    routes = rows.routes(mixture.names)
    objective = Objective(build_terms(spec), route_names=routes, vocabulary=len(tokenizer))
    calibration = 0 if objective.attention is None else objective.attention.calibration_rows
    teacher = None
    if isinstance(spec, DistillStage):
        teacher = _teacher(spec, context, student, tokenizer, rows, objective, arguments)
    if getattr(arguments, "gradient_checkpointing", False) and spec.lora is not None:
        student.enable_input_require_grads()  # reentrant checkpointing sees gradients only through its inputs
    held_out = [row for data in rows.datasets.values() for row in data.holdout]
    # Trainer is not given the tokenizer: it would write the padding token into the model's config, and where that is
    # the end token, whoever loads the finished model has an end token whose embedding no longer learns.
    trainer = DistillationTrainer(
        student if wants_fsdp(arguments) else student.to(arguments.device),  # FSDP moves its part of each layer there
        arguments,
        objective=objective,
        teacher=teacher,
        train_dataset=mixture,
        eval_dataset=held_out or None,
        data_collator=Collator(
            tokenizer.pad_token_id, route_names=routes, packing=spec.packing, max_length=spec.max_length
        ),
        calibration=[row for data in rows.datasets.values() for row in data.train[:calibration]],
        nonfinite=NonFiniteSteps(
            spec.max_nonfinite_steps,
            path=context.directory / "nonfinite.jsonl",
            say=lambda line: context.log(f"{context.name}: {line}"),
        ),
        callbacks=[
            MetricsFile(context.directory / "metrics.jsonl"),
            PlainProgress(lambda line: context.log(f"{context.name}: {line}"), objective.names, context.name),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    lead_trackers(trainer, directory=context.directory, name=f"{context.recipe.name}/{context.name}")
    return trainer


def _mixture(spec: SftStage | DistillStage, context: StageContext, rows: _Rows, pad_token_id: int) -> Mixture:
    mixture = Mixture(
        {name: data.train for name, data in rows.datasets.items()},
        shares=spec.shares,
        by=spec.by,
        rows=spec.rows,
        seed=context.seed,
        multiple_of=spec.rows_per_step,
        pad_token_id=pad_token_id,
    )
    for name, summary in mixture.summary().items():
        context.log(
            f"{context.name}: {name} gives {summary.rows:,} rows, {summary.tokens:,} tokens, {summary.targets:,} "
            "targets per epoch"
        )
    return mixture


def _teacher(
    spec: DistillStage,
    context: StageContext,
    student: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: _Rows,
    objective: Objective,
    arguments: TrainingArguments,
) -> Teacher:
    """The stage's teacher; a stored one has been asked for every row that is to follow its logits."""
    routes = objective.route_names
    with models_read_whole(arguments):
        teacher = build_teacher(
            spec,
            context,
            student=student,
            tokenizer=tokenizer,
            route_names=routes,
            device=arguments.device,
            sharded=shards_student(arguments),
            compiling=compile_options(arguments),
        )
    if isinstance(teacher, StoredTeacher | RoutedTeacher):
        followed = {routes[route] for route in objective.needs.logits}
        teacher.check_rows(row for row in rows.all() if row.route in followed)
    return teacher


# --- measuring --------------------------------------------------------------------------------------------------


def _measure(trainer: DistillationTrainer, rows: _Rows) -> dict[str, dict[str, float]]:
    """Each term on each held-out part; a term that covers no row of a part has no value there, rather than 0."""
    measured = {}
    for name, part in rows.held_out().items():
        found = trainer.measure(part)
        covers_TK = trainer.objective.covers_TK().to(found.targets_K.device)
        covered_T = (covers_TK * (found.targets_K > 0)).any(1)
        totals = {term: value for (term, value), here in zip(found.totals().items(), covered_T, strict=True) if here}
        measured[name] = {**totals, "targets": int(found.targets_K.sum())}
    return measured


def _measured_before(trainer: DistillationTrainer, rows: _Rows, context: StageContext) -> dict[str, Any]:
    """The objective on held-out rows before the first step; kept in a file, for a resumed run is past that point."""
    path = context.directory / "before.json"
    kept: dict[str, Any] | None = from_main(
        lambda: json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    )
    if kept is not None:
        return kept
    measured = _measure(trainer, rows)
    if is_main():
        write_atomic(path, json_text(measured))
    return measured


def _results(trainer: DistillationTrainer, rows: _Rows, before: dict[str, Any]) -> dict[str, Any]:
    links = {
        teacher: {
            str(layer): {
                "teacher_layer": each.teacher_layer,
                "heads": None if each.heads is None else each.heads.tolist(),
            }
            for layer, each in linked.items()
        }
        for teacher, linked in trainer.objective.links.items()
    }
    logged = [line for line in trainer.state.log_history if "targets_per_second" in line]
    return {
        "steps": trainer.state.global_step,
        "before": before,
        "after": _measure(trainer, rows),
        "data": {name: each.as_dict() for name, each in trainer.train_dataset.summary().items()},
        "dropped": {name: data.dropped for name, data in rows.datasets.items() if data.dropped},
        "parameters": count_parameters(trainer.model),
        "trainable_parameters": count_parameters(trainer.model, trainable=True),
        "skipped_steps": trainer.step_metrics.skipped_total,
        "nonfinite_steps": trainer.step_metrics.nonfinite_total,
        "peak_memory_mb": max((line["peak_memory_mb"] for line in logged), default=None),
        **({"attention_map": links} if links else {}),
    }


def _sentence(results: dict[str, Any]) -> str:
    changes = [
        f"{term} on {name} {_number(old)} -> {_number(results['after'][name][term])}"
        for name, terms in results["before"].items()
        for term, old in terms.items()
        if term != "targets" and term in results["after"][name]
    ]
    skipped = results["nonfinite_steps"]
    not_finite = f" ({skipped} of them skipped, their loss or gradient not finite)" if skipped else ""
    return f"{results['steps']} steps{not_finite}" + (f", held out: {', '.join(changes)}" if changes else "")


def _number(value: float | None) -> str:
    """A mean; what is not finite is null in the file from which a resumed run reads it."""
    return "nan" if value is None else f"{value:.4f}"
