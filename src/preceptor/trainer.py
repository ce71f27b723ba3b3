"""transformers' Trainer with a teacher and an objective; the mathematics is theirs, this is the plumbing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from preceptor.checkpoints import ASIDE, SaveLast, last_checkpoint, publish_checkpoint
from preceptor.data.chat import EncodedRow
from preceptor.data.collator import Collator, filler_row
from preceptor.data.mixture import Mixture, MixtureSampler
from preceptor.engine import EngineTrainer
from preceptor.engine_checks import check_engine
from preceptor.errors import InputError
from preceptor.evaluation.measure import TermSums, by_length, measure
from preceptor.files import verify_directory, write_atomic
from preceptor.metrics import StepMetrics
from preceptor.models.compiled import compile_layers, compile_no_model, compile_options
from preceptor.models.sharding import reshard
from preceptor.models.taps import text_config
from preceptor.objective import Objective
from preceptor.signals import Teacher, TokenBatch

METRICS_STATE = "metrics_state.json"


class DistillationTrainer(EngineTrainer):
    """Trains `model` on an objective whose terms may follow a teacher; plain fine-tuning is an objective without one.

    The loss of an optimiser step is the terms' sum over all its target positions, on all ranks and in all accumulated
    micro-batches, divided once by their number N.

    Args:
        model: the student, a transformers causal language model or a PEFT model, with float32 parameters.
        args: as for transformers' Trainer.
        objective: prepared here for `model` and `teacher`.
        teacher: needed where a term follows one.
        train_dataset: encoded rows; a `Mixture` keeps its own order.
        eval_dataset: encoded rows, measured by the objective, per dataset.
        data_collator: makes `TokenBatch` tensors of rows.
        calibration: rows on which layer and head maps are chosen, where they must be.

    Raises:
        InputError: for torch.compile options that cannot be used here, a bfloat16 or float16 student trained in full,
            several visible GPUs in one process, several processes that know nothing of each other, or what
            `Objective.prepare` refuses.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: TrainingArguments,
        *,
        objective: Objective,
        teacher: Teacher | None = None,
        train_dataset: Dataset[EncodedRow] | Sequence[EncodedRow] | None = None,
        eval_dataset: Sequence[EncodedRow] | None = None,
        data_collator: Collator,
        calibration: Sequence[EncodedRow] = (),
        processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> None:
        check_engine(model, args)
        compiling = compile_options(args)
        _check_precision(model, args)
        if data_collator.packing and "flash" in str(text_config(model)._attn_implementation):
            raise InputError(
                f"packing: {text_config(model)._attn_implementation} keeps packed rows apart only in batches of one; "
                "set `packing: false`, or load the student with attn_implementation sdpa"
            )
        args.remove_unused_columns = False  # rows are ours, not columns for model.forward
        if args.gradient_checkpointing and args.ddp_find_unused_parameters is None:
            # Looking for unused parameters breaks recomputation; the head gives each at least a zero gradient.
            args.ddp_find_unused_parameters = False
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator,
            processing_class=processing_class,
            **kwargs,
        )
        compile_no_model(self.accelerator, args)
        # Our loss is divided by N already: Trainer must not divide it by the accumulation steps again.
        self.model_accepts_loss_kwargs = True
        self.objective = objective
        self.teacher = teacher
        self.collator = data_collator
        size = args.per_device_eval_batch_size
        batches = (self._batch(calibration[i : i + size]) for i in range(0, len(calibration), size))
        self.prepare_student()
        # Layers that are gathered in bfloat16 cannot be run without autocast; others are measured as they are.
        with self.autocast() if self.is_fsdp_enabled else nullcontext():
            objective.prepare(self.model, teacher, batches)
        reshard(self.model)
        if compiling is not None:
            compile_layers(self.accelerator.unwrap_model(self.model), compiling, name="student")
        self.step_metrics = StepMetrics(objective, args.device)
        self.add_callback(SaveLast())

    def _batch(self, rows: Sequence[EncodedRow]) -> TokenBatch:
        return TokenBatch.from_inputs(self._prepare_inputs(self.collator(rows)))

    # --- one step -----------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """N, the target positions of the whole optimiser step on all ranks."""
        count = sum(int(inputs["target_mask"].sum()) for inputs in batch_samples)
        everywhere: Tensor = self.accelerator.reduce(torch.tensor(count, device=device), "sum")
        return everywhere

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share of the step's loss, times the ranks over which engines average gradients."""
        batch = TokenBatch.from_inputs(inputs)
        signal = None if self.teacher is None else self.teacher(batch, self.objective.needs)
        with self.autocast():
            sums = self.objective(model, batch, signal, student=self.accelerator.unwrap_model(model))
        self.step_metrics.add(sums, int(batch.attention_mask.sum()))
        count = batch.targets.count if num_items_in_batch is None else int(num_items_in_batch)
        loss = sums.loss * (self.accelerator.num_processes / max(count, 1))
        return (loss, {}) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        state = self.accelerator.gradient_state
        if num_items_in_batch is not None and int(num_items_in_batch) == 0 and state.sync_gradients:
            # Nothing to learn from: without this, weight decay and momentum would still move the weights. Said before
            # the backward, in which DeepSpeed takes its step.
            self.step_metrics.skip()
            state._set_sync_gradients(False)
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> Any:
        """As Trainer.train; a checkpoint is verified against its manifest before anything of it is read."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(Path(self.args.output_dir))
        checkpoint = str(resume_from_checkpoint) if resume_from_checkpoint else None
        if checkpoint is not None:
            verify_directory(Path(checkpoint))
            self.check_checkpoint(Path(checkpoint))
        self.step_metrics.reset()
        if self.args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.args.device)
        if self.is_world_process_zero():
            shutil.rmtree(Path(self.args.output_dir, ASIDE), ignore_errors=True)  # of an interrupted write
        if checkpoint is not None and self.is_world_process_zero():
            # These are the sums of all ranks, and the next log line sums over ranks again.
            state = Path(checkpoint, METRICS_STATE).read_text(encoding="utf-8")
            self.step_metrics.load(json.loads(state))
        with self.objective.listening():
            return super().train(checkpoint, **kwargs)

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        """As Trainer's, which would take one more step when it resumes where `max_steps` ended an epoch early."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if self._order is not None:
            # Skipping batches on several processes wraps the sampler deeper than set_epoch reaches.
            self._order.set_epoch(epoch)
        super()._run_epoch(epoch=epoch, **kwargs)

    _order: MixtureSampler | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        self._order = MixtureSampler(dataset) if isinstance(dataset, Mixture) else None
        if self._order is not None:
            return self._order
        sampler: Sampler[int] | None = super()._get_train_sampler(dataset)
        return sampler

    # --- logs ---------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's line, its loss replaced by ours: Trainer's own running loss is not in a checkpoint."""
        if "loss" in logs:
            line = self.step_metrics.read(lambda flat: self.accelerator.reduce(flat, "sum"))
            logs = {**logs, **line}
            self.step_metrics.reset()
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Sequence[EncodedRow] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Every term on the held-out rows: `eval_TERM`, per dataset `eval_TERM/DATASET`, and their weighted loss."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        with self.step_metrics.paused():
            found = self.measure(rows)
        totals = found.totals()
        loss = self.objective.weighted(found.sums_TK) / max(int(found.targets_K.sum()), 1)
        metrics = {f"{metric_key_prefix}_loss": loss}
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in totals.items()}
        if len(found.route_names) > 1:
            for route, means in found.means().items():
                metrics |= {f"{metric_key_prefix}_{name}/{route}": means[name] for name in found.names}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure(self, rows: Sequence[EncodedRow]) -> TermSums:
        """The objective's terms on `rows`, which all ranks share."""
        model = self.model_wrapped
        with self.autocast():
            found = measure(
                self.objective, model, self._shard(rows), self.teacher, student=self.accelerator.unwrap_model(model)
            )
        reshard(model)
        sums_TK, targets_K = (self.accelerator.reduce(each, "sum") for each in (found.sums_TK, found.targets_K))
        return TermSums(found.names, found.route_names, sums_TK, targets_K)

    def _shard(self, rows: Sequence[EncodedRow]) -> Iterator[TokenBatch]:
        """This rank's batches; every rank gets as many, so that sharded forwards stay in step."""
        size, world = self.args.per_device_eval_batch_size, self.accelerator.num_processes
        batches = by_length([len(row) for row in rows], size)
        filler = filler_row(self.collator.pad_token_id, self.objective.route_names[0])
        for i in range(0, len(batches), world):
            mine = i + self.accelerator.process_index
            yield self._batch([rows[r] for r in batches[mine]] if mine < len(batches) else [filler])

    # --- checkpoints --------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._checkpoint_folder)

    @property
    def _checkpoint_folder(self) -> Path:
        folder = Path(self.args.output_dir)
        return folder / ASIDE if self._writing else folder

    _writing = False

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Trainer's checkpoint, made aside and published whole with checksums."""
        with self.step_metrics.paused():
            self._write_checkpoint(model, trial)

    def _write_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._writing = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writing = False
        folder, best = Path(self.args.output_dir), self.state.best_global_step
        if best is not None:
            self.state.best_model_checkpoint = str(folder / f"checkpoint-{best}")
        metrics = self.step_metrics.state(lambda flat: self.accelerator.reduce(flat, "sum"))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            aside = folder / ASIDE / f"checkpoint-{self.state.global_step}"
            if best is not None:
                self.state.save_to_json(str(aside / "trainer_state.json"))
            write_atomic(aside / METRICS_STATE, json.dumps(metrics))
            publish_checkpoint(aside, folder, keep=self.args.save_total_limit, best=best)
        self.accelerator.wait_for_everyone()


def _check_precision(model: nn.Module, args: TrainingArguments) -> None:
    """Packed weights cannot be trained, and bf16 ones lose most updates at the paper's learning rate."""
    packed = isinstance(model, PreTrainedModel) and getattr(model, "is_quantized", False)
    if packed and not getattr(getattr(model, "hf_quantizer", None), "is_qat_trainable", False):
        raise InputError(
            "student: its checkpoint is quantised, and quantised weights cannot be trained themselves; train an "
            "adapter on it (`lora: {r: 16}`), or start from the checkpoint that was not quantised"
        )
    low = {p.dtype for p in model.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)}
    if low:
        given = str(next(iter(low))).removeprefix("torch.")
        raise InputError(
            f"student: its trainable parameters are {given}, in which most updates round away (learning rate "
            f"{args.learning_rate:g}); load it in float32 and set `training: {{bf16: true}}` to compute in bfloat16"
        )
