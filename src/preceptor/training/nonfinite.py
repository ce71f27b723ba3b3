"""Steps whose loss or gradient is NaN or infinite: skipped, counted, told; too many in a row end the training.

A loss that is not finite makes every gradient of its backward NaN (`scaled`), and the engine's reduction of gradients
carries that to all ranks. So the norm of the reduced gradient, which Trainer computes at every step, tells each of them
the same, without a word more between them. Rows, terms and teachers are looked at only in a step that is skipped.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from preceptor.data.chat import EncodedRow
from preceptor.data.mixture import Mixture
from preceptor.errors import RunFailed
from preceptor.objective import LossSums
from preceptor.signals import TokenBatch
from preceptor.teachers.store_rows import row_key
from preceptor.training.nonfinite_causes import broken_parameter, broken_teachers
from preceptor.training.step_lines import StepLines

if TYPE_CHECKING:
    from preceptor.trainer import DistillationTrainer

IN_A_ROW = 10
"""How many steps in a row may be skipped where nothing else is said."""


def scaled(loss: Tensor, scale: float) -> Tensor:
    """`loss` times `scale`, in whose backward every gradient is NaN where the loss is not finite."""
    exact = torch.promote_types(loss.dtype, torch.float32)
    return loss * (0 * loss.detach().to(exact) + scale)


@dataclass(frozen=True)
class _MicroBatch:
    inputs: Mapping[str, Any]
    """Trainer's, which holds them until the step is over anyway."""
    loss: Tensor
    sums_TK: Tensor

    @property
    def finite(self) -> bool:
        return bool(self.loss.isfinite())

    @property
    def batch(self) -> TokenBatch:
        return TokenBatch.from_inputs(self.inputs)


class NonFiniteSteps(TrainerCallback):
    """Skips such steps: weights, optimiser states, weight decay and momentum stay; schedule and data go on.

    Args:
        limit: how many in a row are skipped; the next one ends the training.
        path: a file that gets a line of JSON for each: the step, the terms, the ids of its rows. None: no file.
        say: takes a line for each.
    """

    def __init__(
        self, limit: int = IN_A_ROW, *, path: Path | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        self.limit = limit
        self.path = path
        self._say = logging.getLogger(__name__).warning if say is None else say
        self._seen: list[_MicroBatch] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Cuts the file to the step from which training goes on."""
        self._seen = []
        if self.path is not None and state.is_world_process_zero and self.path.exists():
            StepLines(self.path).cut(state.global_step)

    def saw(self, inputs: Mapping[str, Any], sums: LossSums) -> None:
        """Remember a micro-batch until its step is decided; nothing is read from the device, and no graph is kept."""
        if torch.is_grad_enabled():  # else it is of no step
            self._seen.append(_MicroBatch(inputs, sums.loss.detach(), sums.sums_TK))

    def passes(self, trainer: DistillationTrainer, norm: Tensor | float | None) -> bool:
        """Whether the step may be taken; the optimiser is kept from it if not. All ranks call it after the backward.

        Raises:
            RunFailed: when `limit` steps in a row have been skipped before.
        """
        seen, self._seen = self._seen, []
        scaler = trainer.accelerator.scaler
        if not trainer.accelerator.gradient_state.sync_gradients:  # a step without targets
            _let_go(scaler)
            trainer.step_metrics.end_step(finite=True)
            return True
        if norm is None or math.isfinite(norm):
            trainer.step_metrics.end_step(finite=True)
            return True
        by_rank = _gathered([each.finite for each in seen], trainer)
        deepspeed = trainer.accelerator.distributed_type == DistributedType.DEEPSPEED
        if all(map(all, by_rank)) and _overflows(scaler, deepspeed and trainer.args.fp16):
            trainer.step_metrics.end_step(finite=True)
            return True
        trainer.step_metrics.end_step(finite=False)
        trainer.accelerator.gradient_state._set_sync_gradients(False)
        _let_go(scaler)
        self._tell(trainer, seen, whole=all(map(all, by_rank)), taken=deepspeed)
        return False

    def _tell(self, trainer: DistillationTrainer, seen: Sequence[_MicroBatch], *, whole: bool, taken: bool) -> None:
        """`whole`: each micro-batch's loss is finite; `taken`: the weights have been changed all the same."""
        bad = [i for i, each in enumerate(seen) if whole or not each.finite]
        described = _described(trainer, [seen[i] for i in bad])
        mine = {
            "micro_batches": [
                {"process": trainer.args.process_index, "micro_batch": i, **each}
                for i, each in zip(bad, described, strict=True)
            ],
            "student": broken_parameter(trainer.model),
            # All ranks call their teachers once: a sharded one needs them all.
            "teachers": broken_teachers(trainer.teacher, seen[bad[0] if bad else 0].batch, trainer.objective.needs),
        }
        everyone = _gathered(mine, trainer)
        found = {
            "step": trainer.state.global_step + 1,
            "not_finite": "gradient" if whole else "loss",
            "in_a_row": trainer.step_metrics.nonfinite_in_a_row,
            "micro_batches": [each for one in everyone for each in one["micro_batches"]],
            "student": next((one["student"] for one in everyone if one["student"]), None),
            "teachers": sorted({name for one in everyone for name in one["teachers"]}),
        }
        if trainer.is_world_process_zero() and self.path is not None:
            StepLines(self.path).add(found["step"], found)
        self._go_on_or_fail(trainer, found, taken)

    def _go_on_or_fail(self, trainer: DistillationTrainer, found: Mapping[str, Any], taken: bool) -> None:
        step, count = found["step"], found["in_a_row"]
        what = f"{found['not_finite']} is not finite ({_where(found)})"
        if taken:
            raise RunFailed(
                f"the {what} at step {step}, which DeepSpeed has taken before anybody could see it, so the weights are "
                f"lost{self._listed()}; go on from the last checkpoint with other rows or a lower learning rate"
            )
        if count > self.limit:
            before = "" if count == 1 else f" as at the {count - 1} before it" if count > 2 else " as at the one before"
            raise RunFailed(
                f"the {what} at step {step}{before}, and `max_nonfinite_steps` is {self.limit}"
                f"{self._listed()}; look at these rows, or set `max_nonfinite_steps` higher to go on past them from "
                "the last checkpoint (other data or a lower `training.learning_rate` need --redo)"
            )
        if trainer.is_world_process_zero():
            self._say(f"step {step} is skipped: its {what}, {count} in a row of at most {self.limit}{self._listed()}")

    def _listed(self) -> str:
        return "" if self.path is None else f"; rows are listed in {self.path}"


def _overflows(scaler: Any, deepspeed: bool) -> bool:
    """Whether a gradient that is not finite may be of the loss scale alone, which float16's scaler then lowers."""
    return deepspeed or (scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1)


def _let_go(scaler: Any) -> None:
    """float16's scaler, which has unscaled the gradients, expects a step that does not come; its scale stays."""
    if scaler is not None and scaler.is_enabled():
        scaler.update(scaler.get_scale())


def _gathered(value: Any, trainer: DistillationTrainer) -> list[Any]:
    """Every rank's value, in the order of ranks."""
    if trainer.args.world_size == 1:
        return [value]
    values = [None] * trainer.args.world_size
    dist.all_gather_object(values, value)
    return values


def _where(found: Mapping[str, Any]) -> str:
    """Terms, rows and whoever is to blame, as far as is known."""
    batches = found["micro_batches"]
    rows = [row for each in batches for row in each["rows"]]
    datasets = sorted({row["dataset"] or row["route"] for row in rows})
    said = []
    if terms := list(dict.fromkeys(term for each in batches for term in each["terms"])):
        said.append(" and ".join(terms))
    said.append(f"{len(rows)} row{'s' * (len(rows) != 1)} of {', '.join(datasets)}" if rows else "no row with targets")
    said += [f"{name} gives values that are not finite" for name in found["teachers"]]
    if found["student"]:
        said.append(f"the student's own {found['student']} is not finite")
    return "; ".join(said)


def _described(trainer: DistillationTrainer, micro_batches: Sequence[_MicroBatch]) -> list[dict[str, Any]]:
    """For each micro-batch, which of its terms are not finite, and its rows."""
    names = trainer.objective.route_names
    rows = [
        [(row_key(ids), len(ids), targets, names[route]) for ids, targets, route in _rows(each.batch)]
        for each in micro_batches
    ]
    # The data set is looked through once for them all: it can be long, and a step can have hundreds of micro-batches.
    origins = _origins(trainer.train_dataset, {key: length for found in rows for key, length, *_ in found})
    nowhere = {"dataset": None, "row": None, "origin": None}
    return [
        {
            "terms": [
                name
                for name, finite in zip(trainer.objective.names, each.sums_TK.isfinite().all(1).tolist(), strict=True)
                if not finite
            ],
            "rows": [
                {
                    **origins.get(key, nowhere),
                    "route": route,
                    "tokens": length,
                    "targets": targets,
                    "sha256": key.hex(),
                }
                for key, length, targets, route in found
            ],
        }
        for each, found in zip(micro_batches, rows, strict=True)
    ]


def _rows(batch: TokenBatch) -> Iterator[tuple[Any, int, int]]:
    """Token ids, number of targets and route of each row with targets, whether packed or padded."""
    columns = (batch.input_ids, batch.segment_ids, batch.target_mask)
    for ids_S, segment_S, target_S, route in zip(*(each.cpu().numpy() for each in columns), batch.routes.tolist()):
        for segment in range(int(segment_S.max()) + 1):
            here_S = segment_S == segment
            if targets := int(target_S[here_S].sum()):
                yield ids_S[here_S], targets, route


def _origins(dataset: Any, keys: Mapping[bytes, int]) -> dict[bytes, dict[str, Any]]:
    """Where rows come from, by the SHA-256 of their tokens; `keys` has their lengths."""
    found: dict[bytes, dict[str, Any]] = {}
    lengths = set(keys.values())
    sources = dataset.sources() if isinstance(dataset, Mixture) else {"": dataset}
    for name, rows in sources.items():
        for number in range(len(rows)):
            row = rows[number]
            if isinstance(row, EncodedRow) and len(row) in lengths and (key := row_key(row.input_ids)) in keys:
                found.setdefault(key, {"dataset": name or row.dataset, "row": number, "origin": row.origin})
    return found
