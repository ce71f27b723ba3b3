"""transformers' Trainer with a teacher and an objective; the mathematics is theirs, this is the plumbing."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from preceptor.data.chat import Targets
from preceptor.data.collator import Collator
from preceptor.data.mixture import Mixture, MixtureSampler
from preceptor.errors import InputError
from preceptor.models.compiled import compile_layers, compile_no_model, compile_options
from preceptor.models.sharding import reshard
from preceptor.models.taps import text_config
from preceptor.objective import Objective
from preceptor.objective.terms import Term
from preceptor.signals import Teacher, TokenBatch
from preceptor.system.files import verify_directory, write_atomic
from preceptor.training.arguments import settle
from preceptor.training.checkpoints import (
    ASIDE,
    SaveLast,
    best_known_to,
    check_best,
    last_of_all,
    publish_checkpoint,
)
from preceptor.training.engine_checks import check_engine, check_precision
from preceptor.training.finished import FinishedModels
from preceptor.training.measuring import MeasuringTrainer
from preceptor.training.metrics import StepMetrics
from preceptor.training.nonfinite import NonFiniteSteps, scaled
from preceptor.training.stopping import StoppableTrainer

METRICS_STATE = "metrics_state.json"
_LOG = logging.getLogger("preceptor")


class DistillationTrainer(MeasuringTrainer, FinishedModels, StoppableTrainer):
    """Trains `model` on an objective whose terms may follow a teacher; plain fine-tuning is an objective without one.

    The loss of an optimiser step is the terms' sum over all its target positions, on all ranks and in all accumulated
    micro-batches, divided once by their number N.

    Args:
        model: the student: a transformers causal language model or a PEFT model, with float32 parameters; or a folder
            or Hub id, which is loaded so.
        args: as for transformers' Trainer, or TRL's SFTConfig, of which a field that would not be followed is refused.
        objective: terms, or an `Objective` of them, prepared here for `model` and `teacher`; None: `[Logits()]`.
        teacher: needed where a term follows one: a teacher, a model, a folder or a Hub id.
        train_dataset: a `datasets.Dataset` or list of dicts in one of TRL's forms, drawn in the order a stage would
            have; or encoded rows, of which a `Mixture` keeps its own order.
        eval_dataset: rows likewise, measured by the objective, per dataset; or several datasets by name.
        data_collator: makes `TokenBatch` tensors of encoded rows; None: pads them.
        calibration: rows on which layer and head maps are chosen, where they must be; of dicts the first to train on.
        nonfinite: what is done about steps whose loss or gradient is not finite; None: as `NonFiniteSteps()`.
        processing_class: the tokenizer, saved with the student; None: the one beside the model's weights.
        peft_config: of an adapter to train on the student.
        max_length: tokens of a row, where rows are dicts; None: that of `args`, else 1024.
        targets: `assistant` or `all`, where rows are dicts; None: answers and completions, and all of plain text.
        formatting_func: makes plain text of each dict.

    Raises:
        InputError: for an argument or setting that cannot be used here, a bfloat16 or float16 student trained in full,
            several visible GPUs in one process, several processes that know nothing of each other, or what
            `Objective.prepare` refuses.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str | Path,
        args: TrainingArguments | None = None,
        *,
        objective: Objective | Sequence[Term] | None = None,
        teacher: Teacher | nn.Module | str | Path | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        data_collator: Collator | None = None,
        calibration: Any = (),
        nonfinite: NonFiniteSteps | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        max_length: int | None = None,
        targets: Targets | None = None,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
        **kwargs: Any,
    ) -> None:
        given = self.given = settle(
            model, args, objective=objective, teacher=teacher, train_dataset=train_dataset, eval_dataset=eval_dataset,
            calibration=calibration, data_collator=data_collator, processing_class=processing_class,
            peft_config=peft_config, max_length=max_length, targets=targets, formatting_func=formatting_func,
            others=kwargs,
        )  # fmt: skip
        model, args = given.model, given.args
        check_engine(model, args)
        compiling = compile_options(args)
        check_precision(model, args)
        if given.collator.packing and "flash" in str(text_config(model)._attn_implementation):
            raise InputError(
                f"packing: {text_config(model)._attn_implementation} keeps packed rows apart only in batches of one; "
                "set `packing: false`, or load the student with attn_implementation sdpa"
            )
        args.remove_unused_columns = False  # rows are ours, not columns for model.forward
        args.max_grad_norm = args.max_grad_norm or 0.0  # None: Trainer would compare it with a number
        if args.gradient_checkpointing and args.ddp_find_unused_parameters is None:
            # Looking for unused parameters breaks recomputation; the head gives each at least a zero gradient.
            args.ddp_find_unused_parameters = False
        super().__init__(
            model,
            args,
            train_dataset=given.train_rows,
            eval_dataset=given.eval_rows,
            data_collator=given.collator,
            processing_class=given.tokenizer,
            **kwargs,
        )
        compile_no_model(self.accelerator, args)
        # Our loss is divided by N already: Trainer must not divide it by the accumulation steps again.
        self.model_accepts_loss_kwargs = True
        self.objective, self.teacher, self.collator = given.objective, given.teacher, given.collator
        self.remember_padding()
        size, rows = args.per_device_eval_batch_size, given.calibration
        batches = (self.batch_of(rows[i : i + size]) for i in range(0, len(rows), size))
        self.prepare_student()
        # Layers that are gathered in bfloat16 cannot be run without autocast; others are measured as they are.
        with self.autocast() if self.is_fsdp_enabled else nullcontext():
            self.objective.prepare(self.model, self.teacher, batches)
        reshard(self.model)
        if compiling is not None:
            compile_layers(self.accelerator.unwrap_model(self.model), compiling, name="student")
        self.step_metrics = StepMetrics(self.objective, args.device)
        self.nonfinite = nonfinite or NonFiniteSteps()
        self.add_callback(self.nonfinite)
        self.add_callback(SaveLast())

    batch_shape: tuple[int, int] | None = None
    """Rows and tokens of the micro-batch that is being worked on, or was last."""

    # --- one step -----------------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """N, the target positions of the whole optimiser step on all ranks."""
        count = sum(int(inputs["target_mask"].sum()) for inputs in batch_samples)
        return self.count_everywhere(count, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share of the step's loss, times the ranks over which engines average gradients."""
        batch = TokenBatch.from_inputs(inputs)
        self.batch_shape = (len(batch.input_ids), batch.input_ids.shape[1])
        signal = None if self.teacher is None else self.teacher(batch, self.objective.needs)
        with self.autocast():
            sums = self.objective(model, batch, signal, student=self.accelerator.unwrap_model(model))
        self.step_metrics.add(sums, int(batch.attention_mask.sum()))
        self.nonfinite.saw(inputs, sums)
        count = batch.targets.count if num_items_in_batch is None else int(num_items_in_batch)
        loss = scaled(sums.loss, self.accelerator.num_processes / max(count, 1))
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

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Trainer's, of which all ranks have one; None of a step that is not to be taken."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return norm if self.nonfinite.passes(self, norm) else None

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> Any:
        """As Trainer.train; a checkpoint is verified against its manifest before anything of it is read."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_of_all(
                Path(self.args.output_dir), _LOG.warning,
                processes=self.args.world_size, main=self.is_world_process_zero(),
            )  # fmt: skip
        checkpoint = str(resume_from_checkpoint) if resume_from_checkpoint else None
        if checkpoint is not None:
            verify_directory(Path(checkpoint))
            self.check_checkpoint(Path(checkpoint))
            if self.args.load_best_model_at_end and (best := best_known_to(Path(checkpoint))) is not None:
                check_best(best)
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

    def _run_epoch(self, *, model: nn.Module, epoch: int, **kwargs: Any) -> None:
        """As Trainer's, which would take one more step when it resumes where `max_steps` ended an epoch early."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if self._order is not None:
            # Skipping batches on several processes wraps the sampler deeper than set_epoch reaches.
            self._order.set_epoch(epoch)
        super()._run_epoch(model=model, epoch=epoch, **kwargs)

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

    # --- checkpoints --------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._checkpoint_folder)

    @property
    def _checkpoint_folder(self) -> Path:
        folder = Path(self.args.output_dir)
        return folder / ASIDE if self._writing else folder

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
            publish_checkpoint(aside, folder, keep=self.args.save_total_limit, best=best, unscheduled=self._unscheduled)
        self.accelerator.wait_for_everyone()
