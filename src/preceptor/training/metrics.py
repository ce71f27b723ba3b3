"""What a training stage logs: each term's mean per target position, per dataset, and how fast it went.

The sums between two log lines are part of a checkpoint, so a resumed run logs what the uninterrupted one would have.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from preceptor.objective import LossSums, Objective
from preceptor.system import live
from preceptor.training.step_lines import StepLines

TIMING = ("targets_per_second", "tokens_per_second", "peak_memory_mb", "seconds")
"""Fields of a log line that differ between two runs of the same recipe."""


class StepMetrics:
    """Sums since the last log line, on this rank."""

    def __init__(self, objective: Objective, device: torch.device) -> None:
        self._objective = objective
        self._device = device
        self.skipped_total = 0  # of the whole training, as the next; the other figures are since the last log line
        self.nonfinite_total = self.nonfinite_in_a_row = 0
        self.reset()

    def reset(self) -> None:
        shape = (len(self._objective.names), len(self._objective.route_names))
        self.sums_TK = torch.zeros(shape, dtype=torch.float64, device=self._device)
        self.weighted_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        self.targets_K = torch.zeros(shape[1], dtype=torch.int64, device=self._device)
        routers = self._objective.routers
        load = (0, 0) if routers is None else (routers.layers, routers.experts)
        self.expert_load_LE = torch.zeros(load, dtype=torch.float64, device=self._device)
        self.tokens = 0
        self.skipped_steps = self.nonfinite_steps = 0
        self._started = time.perf_counter()
        self._mark()

    def _mark(self) -> None:
        self._marked = self.sums_TK, self.weighted_sum, self.targets_K, self.expert_load_LE

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block (evaluation, writing a checkpoint) out of the rates."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - began

    def skip(self) -> None:
        """Count a step without targets."""
        self.skipped_steps += 1
        self.skipped_total += 1

    def add(self, sums: LossSums, tokens: int) -> None:
        # Not in place: `end_step` may take them back.
        self.sums_TK = self.sums_TK + sums.sums_TK
        self.weighted_sum = self.weighted_sum + sums.loss.detach()
        self.targets_K = self.targets_K + sums.targets_K
        self.tokens += tokens
        if sums.expert_load_LE is not None:
            self.expert_load_LE = self.expert_load_LE + sums.expert_load_LE

    def end_step(self, *, finite: bool) -> None:
        """Keep what an optimiser step has added; of one that is not finite only the tokens it took."""
        if finite:
            self.nonfinite_in_a_row = 0
        else:
            self.sums_TK, self.weighted_sum, self.targets_K, self.expert_load_LE = self._marked
            self.nonfinite_steps += 1
            self.nonfinite_total += 1
            self.nonfinite_in_a_row += 1
        self._mark()

    def read(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The log line, summed over ranks by `reduce`."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        sums_TK, weighted_sum, targets_K, tokens, load_LE = self._reduced(reduce)
        K = len(targets_K)
        targets = float(targets_K.sum())
        counted = targets or math.nan  # a mean over nothing is no number, rather than 0
        line = {"loss": weighted_sum / counted}
        for t, name in enumerate(self._objective.names):
            line[name] = float(sums_TK[t].sum()) / counted
        if K > 1:
            for k, route in enumerate(self._objective.route_names):
                count = float(targets_K[k])
                line[f"targets/{route}"] = count
                for t, name in enumerate(self._objective.names):
                    if count:
                        line[f"{name}/{route}"] = float(sums_TK[t, k]) / count
        if load_LE.numel():
            share_LE = load_LE / load_LE.sum(1, keepdim=True).clamp_min(1)
            # The least of any layer: 0 is an expert that no token chose.
            line |= {"expert_share_min": float(share_LE.min()), "expert_share_max": float(share_LE.max())}
        line |= {"targets": targets, "tokens": tokens, "skipped_steps": float(self.skipped_steps)}
        line["nonfinite_steps"] = float(self.nonfinite_steps)
        line |= {"targets_per_second": targets / seconds, "tokens_per_second": tokens / seconds}
        return line | {"peak_memory_mb": peak_memory_mb(self._device), "seconds": seconds}

    def state(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What a checkpoint keeps: the sums of all ranks."""
        sums_TK, weighted_sum, targets_K, tokens, load_LE = self._reduced(reduce)
        return {
            "sums": sums_TK.tolist(),
            "weighted_sum": weighted_sum,
            "targets": [int(count) for count in targets_K],
            "tokens": int(tokens),
            "expert_load": load_LE.tolist(),
            "skipped_steps": self.skipped_steps,
            "skipped_total": self.skipped_total,
            "nonfinite_steps": self.nonfinite_steps,
            "nonfinite_total": self.nonfinite_total,
            "nonfinite_in_a_row": self.nonfinite_in_a_row,
        }

    def _reduced(self, reduce: Callable[[Tensor], Tensor]) -> tuple[Tensor, float, Tensor, float, Tensor]:
        """Sums [T, K], weighted sum, targets [K], tokens and expert load [L, E], of all ranks."""
        T, K = self.sums_TK.shape
        load_LE = self.expert_load_LE
        counts = torch.cat([self.targets_K.double(), torch.tensor([self.tokens], device=self._device).double()])
        flat = reduce(torch.cat([self.sums_TK.flatten(), self.weighted_sum[None], counts, load_LE.flatten()]))
        sums, weighted_sum, targets_K, tokens, load = flat.split([T * K, 1, K, 1, load_LE.numel()])
        return sums.view(T, K), float(weighted_sum), targets_K, float(tokens), load.view_as(load_LE)

    def load(self, state: Mapping[str, Any]) -> None:
        self.reset()
        self.sums_TK += torch.tensor(state["sums"], dtype=torch.float64, device=self._device)
        self.weighted_sum += state["weighted_sum"]
        self.targets_K += torch.tensor(state["targets"], device=self._device)
        if self.expert_load_LE.numel():
            self.expert_load_LE += torch.tensor(state["expert_load"], dtype=torch.float64, device=self._device)
        self.tokens, self.skipped_steps = state["tokens"], state["skipped_steps"]
        self.skipped_total = state["skipped_total"]
        for name in ("nonfinite_steps", "nonfinite_total", "nonfinite_in_a_row"):
            setattr(self, name, state.get(name, 0))  # checkpoints from before they were counted have none
        self._mark()


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process in MB (10^6 bytes): allocated on a CUDA device, resident otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


class MetricsFile(TrainerCallback):
    """Appends every log line to `metrics.jsonl`; on resume it is first cut to the checkpoint's step."""

    def __init__(self, path: Path) -> None:
        self._lines = StepLines(path)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._lines.cut(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            self._lines.add(state.global_step, logs)


class PlainProgress(TrainerCallback):
    """Progress of a training: one plain line per log line, with rate and time left, for a pipe or a log file.

    On a live display (`system.live`) a bar takes the lines' place: it moves with every step and shows the last
    line's figures, and the last line of all stays when it goes.

    Args:
        say: takes a line.
        names: the objective's terms.
        what: what the bar is called.
    """

    def __init__(self, say: Callable[[str], None], names: tuple[str, ...], what: str = "training") -> None:
        self._say = say
        self._names = names
        self._what = what
        self._bar: live.Bar | None = None
        self._line = ""  # the last one, where a bar has shown it

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._begun, self._first = time.perf_counter(), state.global_step
        self._close()  # of a training that was broken off
        if state.is_world_process_zero and state.global_step < state.max_steps:
            self._bar = live.bar(self._what, state.max_steps, unit="steps", done=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        step = f"step {state.global_step}/{state.max_steps}"
        if "loss" in logs:
            done = state.global_step - self._first
            left = (time.perf_counter() - self._begun) / max(done, 1) * (state.max_steps - state.global_step)
            terms = "  ".join(f"{name} {logs[name]:.4f}" for name in self._names)
            norm = f"  grad norm {logs['grad_norm']:.3g}" if "grad_norm" in logs else ""
            figures = f"{terms}{norm}  {logs['targets_per_second']:.0f} targets/s"
            line = f"{step}  {figures}" + (f"  {live.clock(left)} left" if state.global_step < state.max_steps else "")
            if self._bar is not None and self._bar.update(state.global_step, figures):
                self._line = line
            else:
                self._say(line)
        elif "eval_loss" in logs:
            terms = "  ".join(f"{name} {logs[f'eval_{name}']:.4f}" for name in self._names)
            self._say(f"{step}  held out: {terms}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._close()
        if self._line:
            self._say(self._line)
            self._line = ""

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
