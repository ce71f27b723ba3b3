"""A Trainer that ends between two steps when it is asked to, leaving a checkpoint from which nothing is lost.

What it leaves must not change a number of the training that goes on: it is written where a scheduled checkpoint could
be, after the step's log lines and measurements, and it goes when the next scheduled one is there, so that neither the
choice of the best checkpoint nor `save_total_limit` ever sees it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from preceptor.models.taps import replaced
from preceptor.system import interrupts
from preceptor.training.engine import EngineTrainer


class StoppableTrainer(EngineTrainer):
    """Ends by `interrupts.Interrupted`, its checkpoint written, after the step in which `interrupts` was asked to."""

    _saved_step = -1
    _unscheduled = False
    """Whether the checkpoint that is being written is one that only an interruption has asked for."""
    _agreed = 0
    """The signal of any process that all processes know of."""
    _first_step = 0

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As Trainer.train, until a signal is noted; what `eval_on_start` measures, a resumed training has measured."""
        self._saved_step, self._agreed = -1, 0
        measures = self.args.eval_on_start and not resume_from_checkpoint
        with interrupts.deferred(), replaced(self.args, "eval_on_start", measures):
            return super().train(resume_from_checkpoint, **kwargs)

    def count_everywhere(self, count: int, device: torch.device) -> Tensor:
        """The sum of `count` over all ranks; the same reduction tells them which of them were asked to stop."""
        if self.accelerator.num_processes == 1:
            return torch.tensor(count, device=device)
        asked = interrupts.asked()
        # Not the greatest number, for engines sum: how many have heard of each signal.
        mine = [count, *(int(asked == each) for each in interrupts.SIGNALS)]
        reduced: Tensor = self.accelerator.reduce(torch.tensor(mine, device=device), "sum")
        heard = [each for each, ranks in zip(interrupts.SIGNALS, reduced[1:].tolist(), strict=True) if ranks]
        self._agreed = max(heard, default=0)
        if self._agreed and self.state.global_step > self._first_step:
            # They know before the step that begins here, and a step can be long. At the start of an epoch or of a
            # resumed training it is taken: there the states of random generators are not those of a step's end.
            self._stop(self.model_wrapped)
        return reduced[0]

    def _run_epoch(self, *, model: nn.Module, epoch: int, **kwargs: Any) -> None:
        self._first_step = self.state.global_step
        super()._run_epoch(model=model, epoch=epoch, **kwargs)
        if self.state.global_step >= self.state.max_steps and self.accelerator.num_processes > 1:
            self.count_everywhere(0, self.args.device)  # of no step; the last chance to agree
        if self._heard():
            self._stop(model)

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, model: nn.Module, *args: Any, **kwargs: Any
    ) -> None:
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, *args, **kwargs)
        # The end of an epoch logs, measures and saves once more.
        ends = self.state.global_step >= self.state.max_steps or float(self.state.epoch or 0).is_integer()
        if not ends and self._heard():
            self._stop(model)

    def _heard(self) -> int:
        return interrupts.asked() if self.accelerator.num_processes == 1 else self._agreed

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._saved_step = self.state.global_step
        super()._save_checkpoint(model, trial)

    def _stop(self, model: nn.Module) -> None:
        number = self._heard()
        if self._saved_step != self.state.global_step:
            self._unscheduled = True
            try:
                self._save_checkpoint(model, None)
            finally:
                self._unscheduled = False
        raise interrupts.Interrupted(
            number, f"step {self.state.global_step} of {self.state.max_steps} is done and its checkpoint written"
        )
