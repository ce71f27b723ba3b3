"""Which setups take the same step: those of a sweep differ in a learning rate, and need not all be simulated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from preceptor.estimate.setups import LiveTeacher, ModelSetup, Setup
from preceptor.estimate.step import Simulated, simulate

if TYPE_CHECKING:
    from preceptor.data.chat import EncodedRow

_WITHOUT_SIZE = {
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "num_train_epochs", "max_steps"),
    *("seed", "data_seed", "run_name", "logging_steps", "save_steps", "save_strategy", "save_total_limit"),
}
"""Arguments on which no tensor's size depends. One that is missing here costs a simulation, and nothing else."""


class Simulations:
    """Simulates each step once."""

    def __init__(self) -> None:
        self._found: dict[str, Simulated] = {}

    def __call__(self, setup: Setup) -> Simulated:
        """As `simulate`, which is run for the first of several setups that are alike."""
        key = key_of(setup)
        if key not in self._found:
            self._found[key] = simulate(setup)
        return self._found[key]


def key_of(setup: Setup) -> str:
    """Equal for setups whose steps hold and do the same, whatever their rows say and how fast they learn."""
    arguments = {name: value for name, value in setup.arguments.to_dict().items() if name not in _WITHOUT_SIZE}
    terms = [replace(term, weight=float(term.weight != 0)) for term in setup.terms()]
    return json.dumps(
        [
            _model(setup.student),
            arguments,
            repr(terms),
            setup.route_names,
            setup.vocabulary,
            _rows(setup.batch),
            min(setup.accumulation, 2),
            [setup.pad_token_id, setup.packing, setup.max_length],
            repr(setup.lora),
            {key: _model(base) for key, base in setup.bases.items()},
            {key: _teacher(teacher) for key, teacher in setup.teachers.items()},
            setup.routes,
            setup.default,
            _rows(setup.held_out),
            str(setup.stored_dtype),
        ],
        default=str,
        sort_keys=True,
    )


def _model(model: ModelSetup) -> list[Any]:
    config = model.config.to_json_string(use_diff=False)
    return [config, str(model.dtype), model.quantization, model.trust_remote_code, model.packed_bytes]


def _teacher(teacher: Any) -> list[Any]:
    if not isinstance(teacher, LiveTeacher):
        return [repr(teacher)]
    return [teacher.base, None if teacher.adapter is None else teacher.adapter.to_dict()]


def _rows(rows: Sequence[EncodedRow]) -> list[Any]:
    """All of rows that sizes depend on: routes, lengths, and which tokens are targets."""
    return [[row.route, len(row), row.is_target.tobytes().hex()] for row in rows]
