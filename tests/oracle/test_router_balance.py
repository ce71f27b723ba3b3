"""router_balance against transformers' own function and against loops in float64, its value and its gradients."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toys
from oracle import routers
from preceptor.models.calls import RouterCall
from preceptor.models.router_taps import RouterShape
from preceptor.objective import Attention, Logits, NextToken, Objective, RouterBalance
from preceptor.objective.router_balance import Balance
from preceptor.signals import TokenBatch
from preceptor.teachers import ModelTeacher

KINDS = tuple(toys.SPARSE)
LENGTHS, ANSWERS = [11, 7, 14, 5, 9], [5, 0, 9, 4, 1]
ROWS = toys.rows(5, LENGTHS, ANSWERS)
PACKED = [[ROWS[0], ROWS[1]], [ROWS[2]], [ROWS[3], ROWS[4]]]
BATCHES = {
    "right padding": toys.batch([[row] for row in ROWS], extra=2),
    "left padding": toys.batch([[row] for row in ROWS], extra=2, padding_side="left"),
    "packed": toys.batch(PACKED, extra=2),
}
CHECKPOINTING = {"plain": None, "reentrant": True, "checkpointed": False}


def prepared(student: nn.Module, *terms: Any, teacher: Any = None) -> Objective:
    objective = Objective(terms)
    objective.prepare(student, teacher)
    return objective


def sums(objective: Objective, student: nn.Module, batch: TokenBatch) -> dict[str, float]:
    with objective.listening(), torch.no_grad():
        found = objective(student, batch).sums_TK.sum(1)
    return dict(zip(objective.names, found.tolist(), strict=True))


def run_back(objective: Objective, student: Any, batches: Sequence[TokenBatch], teacher: Any = None) -> None:
    student.zero_grad()
    with objective.listening():
        for batch in batches:
            signal = None if teacher is None else teacher(batch, objective.needs)
            objective(student, batch, signal).loss.backward()


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor], limit: float = 1e-9) -> None:
    assert got.keys() == wanted.keys()
    wrong = sum(float((got[name].double() - wanted[name]).square().sum()) for name in wanted) ** 0.5
    size = sum(float(each.square().sum()) for each in wanted.values()) ** 0.5
    assert size > 0
    assert wrong <= limit * size


# --- value ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_value_equals_brute_force(kind: str, how: str) -> None:
    student = toys.sparse(kind, 1, torch.float64, sharpness=3.0)
    found = sums(prepared(student, RouterBalance()), student, BATCHES[how])
    expected = routers.balance(routers.logits_of_rows(routers.doubled(student), ROWS), 2)
    assert found["router_balance"] / sum(ANSWERS) == pytest.approx(float(expected.detach()), rel=1e-10)


@pytest.mark.parametrize("how", ["right padding", "left padding"])
@pytest.mark.parametrize("kind", KINDS)
def test_value_is_what_transformers_adds_to_its_loss(kind: str, how: str) -> None:
    student, batch = toys.sparse(kind, 1, sharpness=3.0), BATCHES[how]
    found = sums(prepared(student, RouterBalance()), student, batch)
    theirs = student(
        batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False,
        output_router_logits=True,
    ).aux_loss  # fmt: skip
    assert found["router_balance"] / sum(ANSWERS) == pytest.approx(float(theirs), rel=2e-6)


def call(logits: Tensor, k: int, router: nn.Module | None = None) -> RouterCall:
    top = logits.softmax(-1).topk(k)
    return RouterCall(nn.Identity() if router is None else router, logits, top.values, top.indices)


def test_an_even_load_gives_k_and_a_collapsed_one_gives_the_number_of_experts() -> None:
    even = Balance(torch.ones(6, dtype=torch.bool), RouterShape(1, 3, 1))
    even.see(call(20 * torch.eye(3).repeat(2, 1), 1))
    assert float(even.value()) == pytest.approx(1.0)
    collapsed = Balance(torch.ones(6, dtype=torch.bool), RouterShape(1, 3, 1))
    collapsed.see(call(50 * torch.tensor([[0.0, 1.0, 0.0]]).repeat(6, 1), 1))
    assert float(collapsed.value()) == pytest.approx(3.0)
    assert collapsed.load_LE.tolist() == [[0, 6, 0]]


def test_layers_are_balanced_together() -> None:
    """As transformers does: two layers that each use one expert only, but not the same one, count as even."""
    together = Balance(torch.ones(4, dtype=torch.bool), RouterShape(2, 2, 1))
    for expert in (0, 1):
        together.see(call(50 * nn.functional.one_hot(torch.full((4,), expert), 2).double(), 1))
    assert float(together.value()) == pytest.approx(1.0)
    assert together.load_LE.tolist() == [[4, 0], [0, 4]]


def test_a_batch_of_padding_is_finite() -> None:
    nothing = Balance(torch.zeros(4, dtype=torch.bool), RouterShape(1, 3, 2))
    nothing.see(call(torch.randn(4, 3), 2))
    assert float(nothing.value()) == 0
    assert not nothing.gradient(torch.randn(4, 3)).any()


def test_the_load_of_each_expert_is_counted() -> None:
    student = toys.sparse("mixtral", 1, torch.float64, sharpness=3.0)
    objective = prepared(student, RouterBalance())
    with objective.listening(), torch.no_grad():
        got = objective(student, BATCHES["left padding"]).expert_load_LE
    assert got is not None
    for layer, logits in zip(got.tolist(), routers.logits_of_rows(student, ROWS), strict=True):
        chosen = torch.stack(logits).topk(2).indices.flatten().tolist()
        assert layer == [chosen.count(e) for e in range(5)]
    assert Objective([NextToken()])(student, BATCHES["left padding"]).expert_load_LE is None


# --- gradients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("how", BATCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_brute_force(kind: str, how: str, checkpointing: str) -> None:
    student = toys.sparse(kind, 1, torch.float64, sharpness=3.0)
    exact = routers.doubled(student)
    reentrant = CHECKPOINTING[checkpointing]
    objective = prepared(student, NextToken(0.3), RouterBalance(2.0))
    if reentrant is not None:
        student.gradient_checkpointing_enable({"use_reentrant": reentrant})
    student.train()
    run_back(objective, student, [BATCHES[how]])
    routers.loss(exact, [ROWS], weight=2.0, cross_entropy=0.3).backward()
    assert_close(routers.gradients(student), routers.gradients(exact))


def test_float32_gradients_are_near() -> None:
    student = toys.sparse("mixtral", 1, sharpness=3.0)
    exact = routers.doubled(student)
    run_back(prepared(student, NextToken(0.3), RouterBalance(2.0)), student, [BATCHES["right padding"]])
    routers.loss(exact, [ROWS], weight=2.0, cross_entropy=0.3).backward()
    assert_close(routers.gradients(student), routers.gradients(exact), 3e-5)


def test_bfloat16_autocast_gives_gradients_of_the_same_direction() -> None:
    student = toys.sparse("mixtral", 1, sharpness=3.0)
    exact = routers.doubled(student)
    objective = prepared(student, RouterBalance(2.0))
    with torch.autocast("cpu", torch.bfloat16):
        run_back(objective, student, [BATCHES["right padding"]])
    routers.loss(exact, [ROWS], weight=2.0, cross_entropy=0.0).backward()
    got, wanted = (
        torch.cat([layer.mlp.gate.weight.grad.double().flatten() for layer in model.model.layers])
        for model in (student, exact)
    )
    assert float(torch.cosine_similarity(got, wanted, dim=0)) > 0.99


def test_alone_it_gives_every_parameter_a_gradient() -> None:
    student = toys.sparse("mixtral", 1, torch.float64, sharpness=3.0)
    exact = routers.doubled(student)
    run_back(prepared(student, RouterBalance()), student, [BATCHES["right padding"]])
    routers.loss(exact, [ROWS], weight=0.01, cross_entropy=0.0).backward()
    got = routers.gradients(student)
    assert len(got) == len(list(student.parameters()))
    assert_close({name: got[name] for name in routers.gradients(exact)}, routers.gradients(exact))


def test_micro_batches_count_as_often_as_they_have_targets() -> None:
    student = toys.sparse("qwen3_moe", 1, torch.float64, sharpness=3.0)
    exact = routers.doubled(student)
    cut = [ROWS[:3], ROWS[3:], [ROWS[1]]]  # the last has no target
    batches = [toys.batch([[row] for row in rows]) for rows in cut]
    objective = prepared(student, NextToken(0.3), RouterBalance(2.0))
    run_back(objective, student, batches)
    routers.loss(exact, cut, weight=2.0, cross_entropy=0.3).backward()
    assert_close(routers.gradients(student), routers.gradients(exact))
    values = [float(routers.balance(routers.logits_of_rows(exact, rows), 2).detach()) for rows in cut]
    found = [sums(objective, student, batch)["router_balance"] for batch in batches]
    assert found == pytest.approx([14 * values[0], 5 * values[1], 0.0])


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_beside_a_teacher_it_adds_its_own_gradient(checkpointing: str) -> None:
    """Attention and router gradients are both injected behind one scale."""
    teacher = ModelTeacher(toys.mistral(2, torch.float64, sharpness=3.0))
    student = toys.sparse("mixtral", 1, torch.float64, sharpness=3.0)
    others = [NextToken(0.3), Logits(), Attention(0.7)]
    reentrant = CHECKPOINTING[checkpointing]
    found = {}
    for name, terms in {"others": others, "mine": [RouterBalance(2.0)], "all": [RouterBalance(2.0), *others]}.items():
        if reentrant is not None:
            student.gradient_checkpointing_disable()
        objective = prepared(student, *terms, teacher=teacher)
        if reentrant is not None and name == "all":
            student.gradient_checkpointing_enable({"use_reentrant": reentrant})
        student.train()
        run_back(objective, student, [BATCHES["left padding"]], teacher if objective.needs_teacher else None)
        found[name] = routers.gradients(student)
    assert objective.names == ("next_token", "logits", "router_balance", "attention")
    assert_close(found["all"], {name: found["others"][name] + found["mine"][name] for name in found["all"]})


def test_routes_share_the_value_by_their_targets() -> None:
    student = toys.sparse("mixtral", 1, torch.float64, sharpness=3.0)
    batch = toys.batch([[row] for row in ROWS], routes=[0, 0, 1, 1, 1])
    objective = Objective([NextToken(), RouterBalance(0.5)], route_names=("a", "b"))
    objective.prepare(student)
    with objective.listening():
        got = objective(student, batch)
    value = float(routers.balance(routers.logits_of_rows(student, ROWS), 2).detach())
    assert got.sums_TK[1].tolist() == pytest.approx([5 * value, 14 * value])
    assert float(got.loss.detach()) == pytest.approx(float(got.sums_TK[0].sum()) + 0.5 * 19 * value)


# --- adapters ---------------------------------------------------------------------------------------------------

ADAPTED: dict[str, dict[str, Any]] = {
    "queries and values": {"target_modules": ["q_proj", "v_proj"]},
    "router whole": {"target_modules": ["q_proj"], "modules_to_save": ["gate"]},
    "router adapted": {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]},
}


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_get_the_gradient_of_autograd(name: str, checkpointing: str) -> None:
    """Against transformers' own function run back without checkpointing, on the same adapted model."""
    from peft import LoraConfig, get_peft_model
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    torch.manual_seed(0)
    base = toys.sparse("mixtral", 1, torch.float64, sharpness=3.0)
    student = get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", lora_dropout=0.0, **ADAPTED[name]))
    with torch.no_grad():
        for parameter_name, parameter in student.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.2)
    batch = BATCHES["left padding"]
    objective = prepared(student, RouterBalance(2.0))

    kept: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _, __, output: kept.append(output[0]))
        for module in student.modules()
        if type(module).__name__ == "MixtralTopKRouter"
    ]
    student(**batch.model_inputs())
    for handle in handles:
        handle.remove()
    expected = load_balancing_loss_func(tuple(kept), 5, 2, batch.attention_mask)
    (2.0 * sum(ANSWERS) * expected).backward()
    wanted = {k: g for k, g in routers.gradients(student).items() if g.any()}
    assert wanted

    reentrant = CHECKPOINTING[checkpointing]
    if reentrant is not None:
        student.gradient_checkpointing_enable({"use_reentrant": reentrant})
        student.enable_input_require_grads()
    student.train()
    run_back(objective, student, [batch])
    got = routers.gradients(student)
    assert_close({k: got[k] for k in wanted}, wanted, 1e-6)  # transformers sums in float32


# --- what must not happen ---------------------------------------------------------------------------------------


def test_a_weight_of_zero_is_measured_and_not_minimised() -> None:
    student = toys.sparse("mixtral", 1, torch.float64, sharpness=3.0)
    batch = BATCHES["right padding"]
    found = []
    for terms in ([NextToken()], [NextToken(), RouterBalance(0.0)]):
        run_back(prepared(student, *terms), student, [batch])
        found.append(routers.gradients(student))
    for name, grad in found[0].items():
        assert torch.equal(grad, found[1][name])
    value = sums(prepared(student, NextToken(), RouterBalance(0.0)), student, batch)["router_balance"]
    assert value == pytest.approx(sums(prepared(student, RouterBalance()), student, batch)["router_balance"])


@pytest.mark.parametrize("reentrant", [True, False])
def test_two_forwards_may_be_in_flight(reentrant: bool) -> None:
    student = toys.sparse("mixtral", 1, torch.float64, sharpness=3.0)
    objective = prepared(student, NextToken(), RouterBalance(2.0))
    student.gradient_checkpointing_enable({"use_reentrant": reentrant})
    student.train()
    batches = [toys.batch([[row] for row in toys.rows(seed, LENGTHS, ANSWERS)]) for seed in (1, 2)]
    run_back(objective, student, batches)
    apart = routers.gradients(student)
    student.zero_grad()
    with objective.listening():
        losses = [objective(student, batch).loss for batch in batches]
        if reentrant:
            for each in losses:
                each.backward()
        else:
            sum(losses).backward()  # type: ignore[union-attr]
    assert_close(routers.gradients(student), apart, 1e-12)


def test_other_forwards_are_left_alone() -> None:
    """A plain forward of the student, while a step's graph is alive and the hooks are on."""
    student = toys.sparse("mixtral", 1, torch.float64, sharpness=3.0)
    objective = prepared(student, NextToken(), RouterBalance(2.0))
    ids = BATCHES["right padding"].input_ids
    student(ids).logits.square().sum().backward()
    plain = routers.gradients(student)
    with objective.listening():
        step = objective(student, BATCHES["right padding"])
        student.zero_grad()
        student(ids).logits.square().sum().backward()
        assert_close(routers.gradients(student), plain, 1e-12)
        assert step.expert_load_LE is not None
        assert step.expert_load_LE.sum(1).tolist() == [2 * sum(LENGTHS)] * 2


def test_two_objectives_may_listen_at_once() -> None:
    student = toys.sparse("mixtral", 1, torch.float64, sharpness=3.0)
    batch = BATCHES["packed"]
    first, second = (prepared(student, NextToken(), RouterBalance(weight)) for weight in (2.0, 0.5))
    run_back(first, student, [batch])
    alone = routers.gradients(student)
    with first.listening():
        first(student, batch)
        with second.listening():
            second(student, batch)
            run_back(first, student, [batch])
        assert_close(routers.gradients(student), alone, 1e-12)
        run_back(first, student, [batch])
    assert_close(routers.gradients(student), alone, 1e-12)


def test_a_sparse_teacher_is_not_counted() -> None:
    """Its forward meets the taps too where it is the student's own base weights."""
    student = toys.sparse("mixtral", 1, torch.float64, sharpness=3.0)
    teacher = ModelTeacher(student)
    objective = Objective([Logits(), RouterBalance(2.0)])
    objective.prepare(student, teacher)
    batch = BATCHES["right padding"]
    alone = sums(prepared(student, RouterBalance()), student, batch)["router_balance"]
    with objective.listening():
        for _ in range(2):  # from the second time on the hooks are there while the teacher runs
            got = objective(student, batch, teacher(batch, objective.needs))
    assert float(got.sums_TK[1].sum()) == pytest.approx(alone)
    assert got.expert_load_LE is not None
    assert got.expert_load_LE.sum(1).tolist() == [2 * sum(LENGTHS)] * 2


def test_nothing_is_left_behind() -> None:
    from preceptor.objective import inside

    student = toys.sparse("mixtral", 1)
    objective = prepared(student, NextToken(), RouterBalance())
    student.gradient_checkpointing_enable({"use_reentrant": False})
    student.train()
    alive: list[weakref.ref[Any]] = []
    original = inside.StudentObserver.__init__

    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        alive.append(weakref.ref(self))

    inside.StudentObserver.__init__ = watched  # type: ignore[method-assign]
    try:
        with objective.listening():
            objective(student, BATCHES["packed"]).loss.backward()
            found = objective(student, BATCHES["packed"])  # never run back
            del found
            gc.collect()
            assert [ref() for ref in alive] == [None, None]
            assert all(layer.mlp.gate._forward_hooks for layer in student.model.layers)
    finally:
        inside.StudentObserver.__init__ = original  # type: ignore[method-assign]
    assert not any(layer.mlp.gate._forward_hooks for layer in student.model.layers)


def test_use_outside_listening_is_an_error_and_not_a_silent_loss_of_gradient() -> None:
    student = toys.sparse("mixtral", 1)
    objective = prepared(student, NextToken(), RouterBalance())
    with pytest.raises(RuntimeError, match=r"2 routers were not tapped; call the objective inside `with objective\."):
        objective(student, BATCHES["packed"])
    with objective.listening():
        got = objective(student, BATCHES["packed"])
    with pytest.raises(RuntimeError, match=r"the backward runs outside `with objective\.listening"):
        got.loss.backward()
