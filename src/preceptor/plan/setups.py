"""From a recipe's training stage to the step that is simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from preceptor.data.chat import EncodedRow
from preceptor.estimate.setups import STUDENT, LiveTeacher, ModelSetup, Setup, StoredSetup, StoreSetup
from preceptor.plan.elsewhere import readable_training
from preceptor.plan.sources import Described, Sources
from preceptor.recipe import DistillStage, ModelSpec, SftStage, StoreStage
from preceptor.recipe.base import KeyPath
from preceptor.recipe.storing import stored_by
from preceptor.recipe.training import DEFAULT_BATCH
from preceptor.stages.build import build_terms, training_arguments

if TYPE_CHECKING:
    from preceptor.data.prepare import PreparedDataset
    from preceptor.stages.context import StageContext

ENGINE_KEYS = ("fsdp", "fsdp_config", "deepspeed", "ddp_backend", "local_rank")
"""Keys of `training:` that say how processes work together, which TrainingArguments would set up at once."""


ASSUMED = "(assumed)"
"""Origin of rows that stand for ones that are not there yet."""


@dataclass(frozen=True)
class Rows:
    """The rows of a stage as far as they are known; None where a stage before it has yet to write them."""

    datasets: Mapping[str, PreparedDataset] | None
    vocabulary: int | None
    pad_token_id: int = 0


def training_setup(
    stage: SftStage | DistillStage,
    context: StageContext,
    sources: Sources,
    rows: Rows,
    devices: int,
    batch: tuple[EncodedRow, ...] | None = None,
) -> Setup:
    """What one device does in a step of `stage`, on `batch` or on the longest rows.

    Raises:
        UnknownError: what the step is made of is not known.
        InputError: for a `training:` block that transformers refuses.
    """
    own = {key: value for key, value in readable_training(stage.training).items() if key not in ENGINE_KEYS}
    arguments = training_arguments(own, Path("unused"), seed=context.seed, accumulation=1)
    if "optim" in stage.training:
        arguments.optim = stage.training["optim"]
    size = int(stage.training.get("per_device_train_batch_size", DEFAULT_BATCH))
    student_spec = stage.student if isinstance(stage, DistillStage) else stage.model
    routes = _routes(stage, rows)
    taught = _teachers(stage, context, sources, rows, student_spec) if isinstance(stage, DistillStage) else {}
    return Setup(
        student=sources.setup(student_spec, student=True),
        arguments=arguments,
        terms=lambda: build_terms(stage),
        route_names=tuple(routes),
        vocabulary=rows.vocabulary,
        batch=batch or longest(_training_rows(stage, rows), size),
        accumulation=max(stage.rows_per_step // (size * devices), 1),
        pad_token_id=rows.pad_token_id,
        packing=stage.packing,
        max_length=stage.max_length,
        lora=stage.lora,
        held_out=longest(_held_out(rows), arguments.per_device_eval_batch_size),
        stored_dtype=sources.describe(student_spec).dtype,
        **taught,
    )


def store_setup(stage: StoreStage, sources: Sources, rows: Rows) -> StoreSetup:
    """What a `store` stage runs at once.

    Raises:
        UnknownError: what it is made of is not known.
    """
    assert isinstance(stage.teacher, ModelSpec)
    found = sources.describe(stage.teacher)
    groups = [[*data.train, *data.holdout, *data.test] for data in (rows.datasets or {}).values()]
    missing = set(stage.dataset_names) - set(rows.datasets or {})
    groups += [[full_row(name, stage.max_length)] * stage.batch_size for name in missing]
    return StoreSetup(
        sources.setup(stage.teacher, student=False),
        found.adapter,
        longest(groups, stage.batch_size),
        rows.vocabulary or int(found.config.vocab_size),
        rows.pad_token_id,
    )


def longest(rows: Sequence[Sequence[EncodedRow]], count: int) -> tuple[EncodedRow, ...]:
    """The `count` longest rows of several groups, taking turns where they are equally long."""
    ordered = [sorted(group, key=lambda row: -len(row))[:count] for group in rows]
    turns = [row for turn in zip_longest(*ordered) for row in turn if row is not None]
    return tuple(sorted(turns, key=lambda row: -len(row))[:count])


def _routes(stage: SftStage | DistillStage, rows: Rows) -> list[str]:
    found: list[str] = []
    for name in sorted(stage.shares):
        data = (rows.datasets or {}).get(name)
        if data is None:
            found.append(name)
        else:
            found += sorted({row.route for part in (data.train, data.holdout, data.test) for row in part})
    return list(dict.fromkeys(found))


def _training_rows(stage: SftStage | DistillStage, rows: Rows) -> list[list[EncodedRow]]:
    """By dataset; of one that is not there yet, rows as long as they may be, all of whose tokens are targets."""
    size = int(stage.training.get("per_device_train_batch_size", DEFAULT_BATCH))
    groups = []
    for name in sorted(stage.shares):
        data = (rows.datasets or {}).get(name)
        groups.append([full_row(name, stage.max_length)] * size if data is None else list(data.train))
    return groups


def _held_out(rows: Rows) -> list[list[EncodedRow]]:
    return [[*data.holdout, *data.test] for data in (rows.datasets or {}).values()]


def full_row(dataset: str, length: int) -> EncodedRow:
    """A row of `length` tokens, all of them targets but the first."""
    targets = np.ones(length, dtype=np.bool_)
    targets[0] = False
    return EncodedRow(dataset, np.zeros(length, dtype=np.int32), targets, origin=ASSUMED)


# --- teachers -------------------------------------------------------------------------------------------------------


def _teachers(
    stage: DistillStage,
    context: StageContext,
    sources: Sources,
    rows: Rows,
    student_spec: ModelSpec,
) -> dict[str, Any]:
    """`bases`, `teachers`, `routes` and `default` of the setup, grouped as `stages.teachers` does."""
    student_base = sources.describe(student_spec)
    bases: dict[str, ModelSetup] = {}
    teachers: dict[str, LiveTeacher | StoredSetup] = {}
    for key, spec in stage.teachers.items():
        store = _stored(spec, context, sources, rows)
        if store is not None:
            teachers[_dotted(key)] = store
            continue
        found = sources.describe(spec)
        if stage.lora is not None and _on_student(spec, found, student_spec, student_base):
            teachers[_dotted(key)] = LiveTeacher(STUDENT, found.adapter)
            continue
        base = f"{found.base} {spec.dtype} {spec.quantization}"
        bases.setdefault(base, sources.setup(spec, student=False))
        teachers[_dotted(key)] = LiveTeacher(base, found.adapter)
    given: dict[str, Any] = {"bases": bases, "teachers": teachers}
    if isinstance(stage.teacher, ModelSpec):
        return given
    given["routes"] = {
        route: tuple((_dotted(_key(route, index, len(shares))), share.weight) for index, share in enumerate(shares))
        for route, shares in stage.teacher.routes.items()
    }
    given["default"] = None if stage.teacher.default is None else "teacher.default"
    return given


def _key(route: str, index: int, count: int) -> KeyPath:
    """The key path that `DistillStage.teachers` gives a route's teacher."""
    return ("teacher", "routes", route) if count == 1 else ("teacher", "routes", route, index, "model")


def _on_student(spec: ModelSpec, found: Described, student_spec: ModelSpec, student: Described) -> bool:
    """Whether the teacher is the frozen base under the student's adapter, as `stages.teachers` decides it."""
    alike = found.base == student.base and spec.quantization == student_spec.quantization
    special = spec.dtype not in (None, student_spec.dtype) or spec.device_map is not None or spec.sharded is not None
    return alike and student_spec.adapter is None and student.adapter is None and not special


def _stored(spec: ModelSpec, context: StageContext, sources: Sources, rows: Rows) -> StoredSetup | None:
    """What a teacher that is a store gives, whether it is written already or not."""
    from preceptor.stages.stores import stored_at
    from preceptor.teachers.store_files import read_manifest

    name = stored_by(spec, context.recipe.stages)
    folder = stored_at(spec, context)
    if name is not None and (folder is None or not folder.exists()):
        stage = context.recipe.stages[name]
        assert isinstance(stage, StoreStage)
        vocabulary = rows.vocabulary or int(sources.describe(stage.student).config.vocab_size)
        return StoredSetup(stage.mode, vocabulary, stage.temperature, stage.draws, stage.k)
    if folder is None:
        return None
    kept = read_manifest(folder)
    return StoredSetup(
        kept["mode"], int(kept["vocabulary"]), float(kept["temperature"]), int(kept["draws"] or 0), int(kept["k"] or 0)
    )


def _dotted(key: KeyPath) -> str:
    return ".".join(map(str, key))
