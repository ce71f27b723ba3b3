"""From the recipe's `teacher:` to a teacher: one model, or several with one copy of what they share, or stores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preceptor.distributed import world_size
from preceptor.models.adapters import put_adapter
from preceptor.models.checkpoint import check_model
from preceptor.models.compiled import CompileOptions, compile_layers, compiles
from preceptor.models.load import load_model, source_dtype
from preceptor.models.sharding import packed_weight, shard
from preceptor.models.tokenizers import check_tokenizer_fits
from preceptor.recipe import DistillStage, ModelSpec
from preceptor.signals import Teacher
from preceptor.stages.context import StageContext
from preceptor.stages.stores import open_store, stored_at
from preceptor.teachers import AdapterTeacher, ModelTeacher, RoutedTeacher, StoredTeacher


def build_teacher(
    spec: DistillStage,
    context: StageContext,
    *,
    student: Any,
    tokenizer: PreTrainedTokenizerBase,
    route_names: Sequence[str],
    device: torch.device,
    sharded: bool = False,
    compiling: CompileOptions | None = None,
) -> Teacher:
    """The stage's teacher on `device` (or where its `device_map` puts it); `sharded` says whether the student is.

    With `compiling`, live teachers whose layers can be compiled are.

    Raises:
        InputError: a model that cannot be loaded, or whose vocabulary the tokenizer does not fit; a store that is not
            whole, or of another tokenizer or chat template.
    """
    made = _Made(context, tokenizer, device, sharded, compiling)
    student_spec = None if spec.lora is None else context.resolve_model(spec.student)
    groups: dict[str, list[ModelSpec]] = {}
    for model in spec.teachers.values():
        resolved = context.resolve_model(model)
        if (folder := stored_at(model, context)) is not None:
            made.stored(model, folder)
            continue
        group = groups.setdefault(_base(resolved).model_dump_json(), [])
        if resolved not in group:
            group.append(resolved)
    for group in groups.values():
        if student_spec is not None and _same_weights(_base(group[0]), student_spec):
            made.share(student, group, compute=source_dtype(student_spec))
            context.log(f"{context.name}: {_count(len(group))} on the student's own base weights")
        elif len(group) > 1:
            made.share(made.load(_base(group[0])), group, own=True)
            context.log(f"{context.name}: {_count(len(group))} on one copy of {group[0].path}")
        else:
            made.alone(group[0])
    if isinstance(spec.teacher, ModelSpec):
        return made.teacher(spec.teacher)
    routes = {
        route: [(made.teacher(share.model), share.weight) for share in shares]
        for route, shares in spec.teacher.routes.items()
    }
    default = None if spec.teacher.default is None else made.teacher(spec.teacher.default)
    return RoutedTeacher(routes, route_names=route_names, default=default)


class _Made:
    """The stage's teachers by their resolved specs."""

    def __init__(
        self,
        context: StageContext,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        sharded: bool,
        compiling: CompileOptions | None,
    ) -> None:
        self._context, self._tokenizer, self._device, self._sharded = context, tokenizer, device, sharded
        self._compiling = compiling
        self._teachers: list[tuple[ModelSpec, ModelTeacher | StoredTeacher]] = []

    def teacher(self, spec: ModelSpec) -> ModelTeacher | StoredTeacher:
        resolved = self._context.resolve_model(spec)
        return next(teacher for known, teacher in self._teachers if known == resolved)

    def stored(self, spec: ModelSpec, folder: Path) -> None:
        """A teacher that is a store; one of several routes is opened once."""
        resolved = self._context.resolve_model(spec)
        if all(known != resolved for known, _ in self._teachers):
            self._teachers.append((resolved, open_store(spec, folder, self._tokenizer, self._context)))

    def load(self, spec: ModelSpec) -> PreTrainedModel:
        model = load_model(spec, role="teacher")
        check_tokenizer_fits(self._tokenizer, model)
        return model

    def place(self, model: Any, spec: ModelSpec) -> Any:
        """A loaded model where it works, ready to."""
        placed = self._placed(model, spec)
        if self._compiling is not None and compiles(placed):
            compile_layers(placed, self._compiling, name=_name(spec))
        return placed

    def _placed(self, model: Any, spec: ModelSpec) -> Any:
        """Cut over all processes, on this one's device, or where its map put it."""
        if spec.device_map is not None:
            return model
        stage, name = self._context.name, _name(spec)
        if spec.sharded or (spec.sharded is None and self._sharded and packed_weight(model) is None):
            self._context.log(f"{stage}: {name} is cut over {world_size()} processes")
            return shard(model, self._device, name=name)
        if spec.sharded is None and self._sharded:
            self._context.log(f"{stage}: {name} is quantised, so each process has a whole copy")
        return model.to(self._device)

    def alone(self, spec: ModelSpec) -> None:
        self._teachers.append((spec, ModelTeacher(self.place(self.load(spec), spec), name=_name(spec))))

    def share(
        self, model: Any, specs: Sequence[ModelSpec], compute: torch.dtype | None = None, *, own: bool = False
    ) -> None:
        """Teachers on the weights of `model`, each with its own adapter or with none; `own`: not the student's."""
        adapters: dict[int, str] = {}
        # All adapters first: PEFT changes the layers of the model that it is given.
        for i, spec in enumerate(specs):
            if spec.adapter is not None:
                folder = check_model(spec).adapter
                assert folder is not None
                adapters[i] = f"teacher_{i}"
                model = put_adapter(model, folder, spec.adapter, name=adapters[i])
        model = self.place(model, _base(specs[0])) if own else model
        for i, spec in enumerate(specs):
            teacher = AdapterTeacher(model, adapters.get(i), name=_name(spec), compute=compute)
            self._teachers.append((spec, teacher))


def _base(spec: ModelSpec) -> ModelSpec:
    return spec.model_copy(update={"adapter": None})


def _same_weights(base: ModelSpec, student: ModelSpec) -> bool:
    """Whether a teacher that asks for nothing special can be the frozen base under the student's adapter."""
    alike = (base.path, base.revision, base.quantization) == (student.path, student.revision, student.quantization)
    special = base.dtype not in (None, student.dtype) or base.device_map is not None or base.sharded is not None
    return alike and student.adapter is None and not special


def _name(spec: ModelSpec) -> str:
    return f"teacher {spec.adapter or spec.path!s}"


def _count(number: int) -> str:
    return "1 teacher" if number == 1 else f"{number} teachers"
