"""A Trainer that measures the terms of an objective on held-out rows, where Trainer would gather logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from preceptor.data.chat import EncodedRow
from preceptor.data.collator import Collator, filler_row
from preceptor.errors import InputError
from preceptor.evaluation.measure import TermSums, by_length, measure
from preceptor.models.sharding import reshard
from preceptor.objective import Objective
from preceptor.signals import Teacher, TokenBatch
from preceptor.training.arguments import Given
from preceptor.training.engine import EngineTrainer
from preceptor.training.metrics import StepMetrics


class MeasuringTrainer(EngineTrainer):
    """`evaluate` and `measure` by sums over target positions, over all ranks."""

    given: Given
    objective: Objective
    teacher: Teacher | None
    collator: Collator
    step_metrics: StepMetrics

    def batch_of(self, rows: Sequence[EncodedRow]) -> TokenBatch:
        """The rows as a batch on this rank's device."""
        return TokenBatch.from_inputs(self._prepare_inputs(self.collator(rows)))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Every term on the held-out rows: `eval_TERM`, per dataset `eval_TERM/DATASET`, and their weighted loss.

        Of a mapping of datasets, as Trainer has it, each: `eval_NAME_loss`, `eval_NAME_TERM`.

        Raises:
            InputError: without any rows, or for rows that cannot be encoded.
        """
        rows = self.eval_dataset if eval_dataset is None else self.given.rows(eval_dataset)
        if rows is None:
            raise InputError("evaluate: there are no rows to measure on; give `eval_dataset`")
        if not isinstance(rows, Mapping):
            return self._evaluate_one(rows, metric_key_prefix)
        metrics: dict[str, float] = {}
        for name, each in rows.items():
            metrics |= self._evaluate_one(each, f"{metric_key_prefix}_{name}")
        return metrics

    def _evaluate_one(self, rows: Sequence[EncodedRow], prefix: str) -> dict[str, float]:
        with self.step_metrics.paused():
            found = self.measure(rows)
        totals = found.totals()
        loss = self.objective.weighted(found.sums_TK) / max(int(found.targets_K.sum()), 1)
        metrics = {f"{prefix}_loss": loss}
        metrics |= {f"{prefix}_{name}": value for name, value in totals.items()}
        if len(found.route_names) > 1:
            for route, means in found.means().items():
                metrics |= {f"{prefix}_{name}/{route}": means[name] for name in found.names}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *_: Any, **__: Any) -> NoReturn:
        """Raises InputError: a [B, S, V] of logits is what this trainer never makes."""
        raise InputError(
            "predict: no logits are gathered here; `evaluate()` gives every term of the objective, and "
            "`trainer.model.generate` answers"
        )

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
            yield self.batch_of([rows[r] for r in batches[mine]] if mine < len(batches) else [filler])
