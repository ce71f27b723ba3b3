"""Compiled layers change nothing: the same losses and gradients, no graph break, no graph per layer or per length."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import toys
from invariant import compiled_ranks, steps
from invariant.ranks import on_two_ranks
from invariant.test_one_process import make_trainer
from preceptor.models.calls import AttentionCall
from preceptor.models.compiled import CompileOptions, compile_layers
from preceptor.models.recorder import Recorder
from preceptor.objective import Attention, Logits, Objective, RouterBalance
from preceptor.signals import TokenBatch, Wanted
from preceptor.teachers import ModelTeacher

TRACED = CompileOptions("eager")  # the forward's graph, run by torch itself
CUT = CompileOptions("aot_eager")  # the backward's too, each with what it needs of the other
CHECKPOINTING = {"plain": None, "reentrant": True, "checkpointed": False}


@pytest.fixture(autouse=True)
def whole() -> Iterator[None]:
    yield
    assert not counters["graph_break"]


@pytest.fixture
def fresh() -> None:
    """No graph yet, so that those of the test can be counted."""
    torch._dynamo.reset()
    counters.clear()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def batches(padding_side: str = "right") -> list[TokenBatch]:
    """As many rows in each, their lengths not."""
    sizes = [([9, 7, 5], [4, 3, 2]), ([12, 8, 11], [2, 6, 3]), ([6, 15, 10], [1, 2, 9])]
    return [
        toys.batch([[row] for row in toys.rows(seed, *size)], padding_side=padding_side)
        for seed, size in enumerate(sizes)
    ]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def run(
    objective: Objective, student: nn.Module, teacher: ModelTeacher, given: list[TokenBatch]
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The terms' sums and all gradients of each batch, as if each were a step."""
    sums, found = [], []
    for batch in given:
        student.zero_grad()
        with objective.listening():
            got = objective(student, batch, teacher(batch, objective.needs))
            got.loss.backward()
        sums.append(got.sums_TK)
        found.append(gradients(student))
    return sums, found


def check_equal(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("kind", CHECKPOINTING)
def test_losses_and_gradients(kind: str) -> None:
    student, teacher = steps.models(True, torch.float32)
    objective, teaches = steps.objective(), ModelTeacher(teacher)
    objective.prepare(student, teaches)
    given = batches("left" if kind == "plain" else "right")
    expected = run(objective, student, teaches, given)  # checkpointing is off: it changes nothing
    if CHECKPOINTING[kind] is not None:
        student.gradient_checkpointing_enable({"use_reentrant": CHECKPOINTING[kind]})
        student.enable_input_require_grads()
    compile_layers(student, TRACED, name="student")
    if kind == "plain":
        compile_layers(teacher, TRACED, name="teacher")
    student.train()
    check_equal(run(objective, student, teaches, given), expected)
    # Layers of a model share a graph, and so do lengths; reentrant checkpointing's first pass has one of its own.
    assert graphs() == {"plain": 2, "reentrant": 2, "checkpointed": 1}[kind]


@pytest.mark.usefixtures("fresh")
def test_an_adapter_on_the_teacher_s_own_weights() -> None:
    """The teacher is the student with its adapter off: both run the same compiled layers."""
    from peft import LoraConfig, get_peft_model

    from preceptor.teachers import AdapterTeacher

    torch.manual_seed(0)
    student = get_peft_model(
        steps.models(True, torch.float32)[0],
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    teacher = AdapterTeacher(student, None)
    objective = steps.objective()
    objective.prepare(student, teacher)
    expected = run(objective, student, teacher, batches())
    compile_layers(student, TRACED, name="student")
    check_equal(run(objective, student, teacher, batches()), expected)
    assert graphs() == 3  # the student's first layer has an input without gradient, the others have not


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("reentrant", "options"), [(True, TRACED), (False, CUT)], ids=["reentrant", "checkpointed"])
def test_routers(reentrant: bool, options: CompileOptions) -> None:
    student, teacher = toys.sparse("mixtral", 1, sharpness=2), ModelTeacher(toys.llama(2, sharpness=2))
    student.set_experts_implementation("batched_mm")  # torch 2.11 cannot trace grouped_mm
    objective = Objective([Logits(), Attention(2.0), RouterBalance(0.5)])
    objective.prepare(student, teacher)
    given = batches()[:2]
    expected = run(objective, student, teacher, given)
    student.gradient_checkpointing_enable({"use_reentrant": reentrant})
    student.enable_input_require_grads()
    compile_layers(student, options, name="student")
    student.train()
    check_equal(run(objective, student, teacher, given), expected)
    assert graphs() == (2 if reentrant else 1)


@pytest.mark.usefixtures("fresh")
def test_trainer(tmp_path: Path) -> None:
    logs = []
    for more in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        trainer = make_trainer(tmp_path, torch.float32, 8, max_steps=2, **more)
        trainer.train()
        logs.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
        assert list(trainer.model.state_dict()) == list(steps.models(True, torch.float32)[0].state_dict())
    assert logs[1] == pytest.approx(logs[0], rel=1e-6)
    assert graphs() == 1


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    """DDP, and FSDP2 with reentrant checkpointing, whose hooks stand around the compiled layers."""
    on_two_ranks(compiled_ranks.on_rank, tmp_path)
    eager, *compiled = (torch.load(tmp_path / name, weights_only=True) for name in compiled_ranks.CASES)
    for weights in compiled:
        check_equal(weights, eager)


class Compiled:
    """A compiled student, its eager twin, and what they learn."""

    def __init__(self) -> None:
        self.eager, teacher = steps.models(True, torch.float32)
        self.student = copy.deepcopy(self.eager)
        self.objective, self.teacher = steps.objective(), ModelTeacher(teacher)
        self.objective.prepare(self.eager, self.teacher)
        compile_layers(self.student, TRACED, name="student")

    def forward(self, batch: TokenBatch) -> Any:
        return self.objective(self.student, batch, self.teacher(batch, self.objective.needs))

    def expected(self, given: list[TokenBatch]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        return run(self.objective, self.eager, self.teacher, given)


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    """With the graphs of the tests before."""
    return Compiled()


@pytest.fixture
def it(compiled: Compiled) -> Iterator[Compiled]:
    compiled.student.zero_grad()
    yield compiled
    compiled.student.gradient_checkpointing_disable()
    compiled.student.eval()


def test_two_forwards_may_be_in_flight_and_nothing_outlives_them(it: Compiled) -> None:
    given = batches()[:2]
    expected = it.expected(given)[1]
    with it.objective.listening():
        losses = [it.forward(batch).loss for batch in given]
        gc.collect()  # what the compiler leaves of the forward it traced
        seen = [weakref.ref(observer) for observer in observers()]
        assert len(seen) == 2
        losses[0].backward()
        losses[1].backward()
        del losses
    together = {name: expected[0][name] + grad for name, grad in expected[1].items()}
    check_equal(gradients(it.student), together)
    gc.collect()
    assert [ref() for ref in seen] == [None, None]


def observers() -> list[Any]:
    from preceptor.models import opaque

    return list(opaque._observers.values())


def test_a_term_that_is_only_measured(it: Compiled) -> None:
    given = batches()
    objective = Objective([Logits(), Attention(weight=0.0)])
    objective.prepare(it.eager, it.teacher)
    expected = run(objective, it.eager, it.teacher, given)
    check_equal(run(objective, it.student, it.teacher, given), expected)


def test_autocast(it: Compiled) -> None:
    """Queries and keys are seen as attention multiplies them, and the operators' gradients are cast as autograd's."""
    found = []
    with torch.autocast("cpu", torch.bfloat16):
        for student in (it.eager, it.student):
            found.append(run(it.objective, student, it.teacher, batches()[:1]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-3)
    assert {grad.dtype for grad in found[1][1][0].values()} == {torch.float32}


def test_a_failed_forward_leaves_nothing(it: Compiled) -> None:
    given = batches()[:1]
    hook = it.student.model.layers[1].register_forward_pre_hook(_fail)
    with pytest.raises(ZeroDivisionError), it.objective.listening():
        it.forward(given[0])
    hook.remove()
    gc.collect()
    assert not observers()
    check_equal(run(it.objective, it.student, it.teacher, given), it.expected(given))


def _fail(*_: Any) -> None:
    raise ZeroDivisionError


def test_outside_the_objective_it_generates(it: Compiled) -> None:
    """With a cache of keys and values, and without any tap."""
    ids = batches()[0].input_ids
    found = []
    with torch.no_grad():
        for student in (it.eager, it.student):
            before = student(ids[:, :4], use_cache=True)
            found.append([before.logits, student(ids[:, 4:6], past_key_values=before.past_key_values).logits])
    check_equal(found[1], found[0])


def test_a_gradient_that_could_not_be_added_is_an_error(it: Compiled) -> None:
    """The layers are run back without the head, so nothing says by how much the loss is scaled."""
    batch = batches()[0]
    it.student.gradient_checkpointing_enable({"use_reentrant": False})
    it.student.train()
    states: list[Tensor] = []
    hook = it.student.model.norm.register_forward_hook(lambda *given: states.append(given[-1]))
    with it.objective.listening():
        it.forward(batch)
        with pytest.raises(RuntimeError, match="before the loss's backward reached the head"):
            states[0].sum().backward()
        got = it.forward(batch)
    hook.remove()
    with pytest.raises(RuntimeError, match=r"outside `with objective\.listening"):
        got.loss.backward()


def test_a_copy_has_layers_of_its_own(it: Compiled) -> None:
    batch = batches()[0]
    other, eager = copy.deepcopy(it.student), copy.deepcopy(it.eager)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.zero_()
        eager.model.layers[0].mlp.down_proj.weight.zero_()
        check_equal(other(batch.input_ids).logits, eager(batch.input_ids).logits)


def test_what_is_lent_is_copied() -> None:
    """A compiled graph writes over its keys when it needs them no more."""
    batch = batches()[0]
    B, S = batch.input_ids.shape
    q_BHSD, k_BGSD = torch.ones(B, 4, S, 6), torch.ones(B, 2, S, 6)
    recorder = Recorder(batch.targets, Wanted(attention_layers=(0,)))
    recorder.see_attention(AttentionCall(0, q_BHSD, k_BGSD, k_BGSD, 1.0, None, None, lent=True))
    k_BGSD.zero_()
    q_BHSD.zero_()
    kept = recorder.attention[0]
    assert kept.k_BGSD.all()
    assert kept.q_BHRD.all()
