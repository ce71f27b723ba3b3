"""One training step, simulated: the objective, the teachers, the student's class and the optimiser are the real ones.

The step is the second of a training, in which optimiser states are there already. Where the recipe accumulates several
micro-batches it is the last of them that is run, for which gradients are there already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from preceptor.data.collator import Collator
from preceptor.estimate.costs import Costs
from preceptor.estimate.losses import simulated_losses
from preceptor.estimate.models import largest_layer, meta_model, with_adapter, with_lora
from preceptor.estimate.optimizers import make_optimizer
from preceptor.estimate.setups import STUDENT, LiveTeacher, Setup, StoredSetup
from preceptor.estimate.simulation import Simulation
from preceptor.estimate.storages import GRADIENTS, OPTIMIZER, SIGNALS, TEACHER_WEIGHTS, WEIGHTS, Storages
from preceptor.estimate.stored import StoredStandIn
from preceptor.models.taps import replaced
from preceptor.objective import Attention, Objective
from preceptor.objective import objective as prepared
from preceptor.objective.maps import LayerLink
from preceptor.signals import LayerShape, Signal, Teacher, TokenBatch
from preceptor.teachers import AdapterTeacher, ModelTeacher, RoutedTeacher


@dataclass(frozen=True)
class Simulated:
    """What one step was found to hold and to do.

    Costs have the phases `teacher`, `forward`, `backward` and `update`, and those of held-out
    rows `held-out`.
    """

    storages: Storages
    costs: Costs
    tokens: int
    """Of one micro-batch, padding included."""
    parameters: int
    trainable: int
    layer: int
    """Elements of the student's largest layer."""
    teacher_layer: int
    held_out_tokens: int
    optimizer_bytes: int


def simulate(setup: Setup) -> Simulated:
    """Run one step of `setup` without memory.

    Raises:
        Exception: of any class, where the model does what cannot be simulated; callers say so to the user.
    """
    simulation = Simulation()
    storages = simulation.storages
    student, teacher, teachers = _models(setup, simulation)
    with simulation, simulated_losses(simulation):
        objective = _objective(setup, student, teacher)
        if setup.arguments.gradient_checkpointing:
            if setup.lora is not None:
                student.enable_input_require_grads()
            # Under either of the names that versions of transformers give it.
            newer = getattr(student, "activation_checkpointing_enable", None)
            (newer or student.gradient_checkpointing_enable)(_checkpointing_options(setup.arguments))
        student.train()
        trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(setup.arguments, student, trainable)
        with simulation.phase("start"):
            _first_update(optimizer, trainable, storages)
        storages.label((v for state in optimizer.state.values() for v in state.values() if _is_tensor(v)), OPTIMIZER)
        batch = _batch(setup, setup.batch)
        if setup.accumulation > 1:
            _give_gradients(trainable, storages)
        with objective.listening():
            step = _Step(simulation, objective, student, teacher, setup.arguments)
            step.train(batch)
            storages.label((parameter.grad for parameter in trainable), GRADIENTS)
            with simulation.phase("update"):
                torch.nn.utils.clip_grad_norm_(trainable, setup.arguments.max_grad_norm or 1.0)
                optimizer.step()
                optimizer.zero_grad()
            held_out = _batch(setup, setup.held_out) if setup.held_out else None
            if held_out is not None:
                step.measure(held_out)
        return Simulated(
            storages,
            simulation.costs,
            batch.input_ids.numel(),
            sum(parameter.numel() for parameter in student.parameters()),
            sum(parameter.numel() for parameter in trainable),
            largest_layer(student),
            max(map(largest_layer, teachers), default=0),
            0 if held_out is None else held_out.input_ids.numel(),
            storages.most(OPTIMIZER),
        )


def _checkpointing_options(arguments: Any) -> Any:
    """Under either of the names that versions of transformers give them."""
    return getattr(arguments, "activation_checkpointing_kwargs", None) or arguments.gradient_checkpointing_kwargs


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


# --- what a step is made of -----------------------------------------------------------------------------------------


def _models(setup: Setup, simulation: Simulation) -> tuple[Any, Teacher | None, list[nn.Module]]:
    """Student, teacher, and the models that teachers do not share with the student."""
    student: Any = meta_model(setup.student)
    if setup.lora is not None:
        student = with_lora(student, setup.lora)
    teachers: dict[str, Any] = {}
    bases: list[nn.Module] = []
    for key in [STUDENT, *setup.bases]:
        mine = {name: t.adapter for name, t in setup.teachers.items() if isinstance(t, LiveTeacher) and t.base == key}
        if not mine:
            continue
        model = student if key == STUDENT else meta_model(setup.bases[key]).requires_grad_(False)
        names = {name: f"teacher_{number}" for number, name in enumerate(mine) if mine[name] is not None}
        for name, own in names.items():
            model = with_adapter(model, mine[name], own)
        if key != STUDENT:
            bases.append(model)
        for name in mine:
            if key == STUDENT or len(mine) > 1:
                compute = setup.stored_dtype if key == STUDENT else None
                teachers[name] = AdapterTeacher(model, names.get(name), name=name, compute=compute)
            else:
                teachers[name] = _Alone(model.get_base_model() if names else model, name=name)
    for name, teacher in setup.teachers.items():
        if isinstance(teacher, StoredSetup):
            teachers[name] = StoredStandIn(teacher, name)
    for model in [student, *bases]:
        simulation.adopt(model)
    # Teachers' first: what they share with the student is the student's.
    for base in bases:
        simulation.storages.label([*base.parameters(), *base.buffers()], TEACHER_WEIGHTS)
    simulation.storages.label([*student.parameters(), *student.buffers()], WEIGHTS)
    return student, _taught_by(setup, teachers), bases


class _Alone(ModelTeacher):
    """A teacher by itself, made while its model is still on the meta device."""

    def __init__(self, model: nn.Module, *, name: str) -> None:
        self.model, self.name = model, name


def _taught_by(setup: Setup, teachers: dict[str, Any]) -> Teacher | None:
    if not teachers:
        return None
    if setup.routes is None:
        (teacher,) = teachers.values()
        return teacher  # type: ignore[no-any-return]
    routes = {route: [(teachers[name], weight) for name, weight in shares] for route, shares in setup.routes.items()}
    default = None if setup.default is None else teachers[setup.default]
    return RoutedTeacher(routes, route_names=setup.route_names, default=default)


def _objective(setup: Setup, student: nn.Module, teacher: Teacher | None) -> Objective:
    objective = Objective(setup.terms(), route_names=setup.route_names, vocabulary=setup.vocabulary)
    with replaced(prepared, "link_layers", _any_links):
        objective.prepare(student, teacher)
    return objective


def _any_links(
    term: Attention,
    student: nn.Module,
    student_shapes: Sequence[LayerShape],
    teacher: Teacher,
    calibration: Any,
    routes: frozenset[int],
) -> dict[str, dict[int, LayerLink]]:
    """Maps of layers and heads of which those that training chooses on data are any: all take the same."""
    chosen = replace(term, layers="uniform") if term.layers == "assign" else term
    links: dict[str, dict[int, LayerLink]] = {}
    for name, theirs in teacher.attention_shapes(routes).items():
        links[name] = {}
        for s, t in chosen.layer_map(student_shapes, theirs).items():
            ours, other = student_shapes[s].heads, theirs[t].heads
            same = ours == other and term.heads != "assign"
            links[name][s] = LayerLink(t, None if same else torch.arange(ours) % other)
    return links


def _batch(setup: Setup, rows: Any) -> TokenBatch:
    collator = Collator(
        setup.pad_token_id, route_names=setup.route_names, packing=setup.packing, max_length=setup.max_length
    )
    return TokenBatch.from_inputs(collator(rows))


# --- what a step does -----------------------------------------------------------------------------------------------


def _first_update(optimizer: torch.optim.Optimizer, trainable: list[nn.Parameter], storages: Storages) -> None:
    _give_gradients(trainable, storages)
    optimizer.step()
    optimizer.zero_grad()


def _give_gradients(trainable: list[nn.Parameter], storages: Storages) -> None:
    for parameter in trainable:
        parameter.grad = torch.empty_like(parameter)
    storages.label((parameter.grad for parameter in trainable), GRADIENTS)


@contextmanager
def _precision(student: Any, arguments: Any) -> Iterator[None]:
    """Autocast around the student's forward, as accelerate puts it there."""
    if not (arguments.bf16 or arguments.fp16):
        yield
        return
    forward, dtype = student.forward, torch.bfloat16 if arguments.bf16 else torch.float16

    def cast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=dtype):
            return forward(*args, **kwargs)

    with replaced(student, "forward", cast):
        yield


@dataclass(frozen=True)
class _Step:
    """What a simulated step is run with, training or measuring."""

    simulation: Simulation
    objective: Objective
    student: Any
    teacher: Teacher | None
    arguments: Any

    def train(self, batch: TokenBatch) -> None:
        """Forward and backward."""
        with _precision(self.student, self.arguments):
            sums = self._forward(batch, "forward", "teacher")
            loss = sums.loss / max(batch.targets.count, 1)
            with self.simulation.phase("backward"):
                loss.backward()

    @torch.no_grad()
    def measure(self, batch: TokenBatch) -> None:
        """Held-out rows, as `evaluation.measure` runs them."""
        self.student.eval()
        with _precision(self.student, self.arguments):
            self._forward(batch, "held-out", "held-out teacher")

    def _forward(self, batch: TokenBatch, phase: str, asking: str) -> Any:
        signal = None if self.teacher is None else self._taught(self.teacher, batch, asking)
        with self.simulation.phase(phase):
            return self.objective(self.student, batch, signal)

    def _taught(self, teacher: Teacher, batch: TokenBatch, phase: str) -> Signal:
        with self.simulation.phase(phase):
            signal = teacher(batch, self.objective.needs)
        for part in signal.parts:
            said = [
                part.hidden_ND,
                *(each for scores in part.attention.values() for each in (scores.q_BHRD, scores.k_BGSD)),
            ]
            stored = [] if part.stored is None else [each for each in vars(part.stored).values() if _is_tensor(each)]
            self.simulation.storages.label([*said, *stored], SIGNALS)
        return signal
