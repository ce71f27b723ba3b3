"""What router_balance refuses, before any training, in one sentence each."""

from __future__ import annotations

import copy
from types import MethodType

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, GptOssConfig, GptOssForCausalLM

import toys
from preceptor.errors import InputError
from preceptor.objective import Attention, Logits, NextToken, Objective, RouterBalance
from preceptor.teachers import ModelTeacher

UNLIKE = (
    "do not choose and weigh experts by the softmax of their logits; accepted are routers like those of Mixtral, "
    "Qwen2-MoE and Qwen3-MoE; leave `{kind: router_balance}` out of the objective"
)


def refusal(student) -> str:
    objective = Objective([NextToken(), RouterBalance()])
    with pytest.raises(InputError) as caught:
        objective.prepare(student)
    return str(caught.value)


def test_a_dense_student() -> None:
    assert refusal(toys.llama(0)) == (
        "router_balance: the student (LlamaForCausalLM) is dense and has no router; take a sparse student, such as a "
        "`compose` stage makes, or leave `{kind: router_balance}` out of the objective"
    )


def test_a_dense_student_with_an_adapter() -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(toys.llama(0), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert refusal(adapted).startswith("router_balance: the student (LlamaForCausalLM) is dense and has no router;")


def test_a_sparse_architecture_without_a_sparse_layer() -> None:
    student = toys.sparse("qwen3_moe", 0, mlp_only_layers=[0, 1])
    assert refusal(student).startswith("router_balance: the student (Qwen3MoeForCausalLM) is dense and has no router;")


def test_routers_with_another_interface() -> None:
    config = DeepseekV3Config(
        vocab_size=61, hidden_size=32, intermediate_size=40, moe_intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8, n_group=2, topk_group=1,
        num_experts_per_tok=2, first_k_dense_replace=0, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    dense = "is dense and has no router; take a sparse student"  # to transformers 5.17, whose own list lacks this one
    said = refusal(DeepseekV3ForCausalLM(config))
    assert said == f"router_balance: the routers of DeepseekV3ForCausalLM {UNLIKE}" or (
        dense in said and said.startswith("router_balance: the student (DeepseekV3ForCausalLM) ")
    )


def test_routers_that_choose_by_something_else() -> None:
    student = toys.sparse("mixtral", 0)

    def least(router, hidden):
        logits = hidden.reshape(-1, router.hidden_dim) @ router.weight.T
        weights, chosen = (-logits).softmax(-1).topk(router.top_k, dim=-1)
        return logits, weights, chosen

    student.model.layers[1].mlp.gate.forward = MethodType(least, student.model.layers[1].mlp.gate)
    assert refusal(student) == f"router_balance: the routers of MixtralForCausalLM {UNLIKE}"


def test_routers_that_weigh_by_something_else() -> None:
    student = toys.sparse("mixtral", 0)

    def squashed(router, hidden):
        logits = hidden.reshape(-1, router.hidden_dim) @ router.weight.T
        weights, chosen = logits.sigmoid().topk(router.top_k, dim=-1)
        return logits, weights, chosen

    student.model.layers[0].mlp.gate.forward = MethodType(squashed, student.model.layers[0].mlp.gate)
    assert refusal(student) == f"router_balance: the routers of MixtralForCausalLM {UNLIKE}"


def test_a_refused_student_is_left_as_it_was() -> None:
    student = toys.sparse("mixtral", 0)
    student.model.layers[0].mlp.gate.forward = lambda hidden: (_ for _ in ()).throw(IndexError)
    student.train()
    with pytest.raises(IndexError):
        Objective([RouterBalance()]).prepare(student)
    assert student.training
    assert not any(layer.mlp.gate._forward_hooks for layer in student.model.layers)


def test_routers_of_zeros_are_accepted() -> None:
    """All logits equal, as in a composed student whose router starts uniform."""
    student = toys.sparse("mixtral", 0)
    with torch.no_grad():
        for layer in student.model.layers:
            layer.mlp.gate.weight.zero_()
    Objective([RouterBalance()]).prepare(student)


def test_routes() -> None:
    with pytest.raises(InputError) as caught:
        RouterBalance(0.1, ("shop",))
    assert str(caught.value) == (
        "router_balance: routes shop given, but a router is balanced over the rows of all datasets; leave `routes` out"
    )


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_a_weight_out_of_range(weight: float) -> None:
    with pytest.raises(InputError) as caught:
        RouterBalance(weight)
    assert str(caught.value) == f"router_balance: weight {weight} is out of range; give a number of at least 0"


def test_two_terms() -> None:
    with pytest.raises(InputError) as caught:
        Objective([NextToken(), RouterBalance(0.1), RouterBalance(0.2)])
    assert str(caught.value) == ("objective: two router_balance terms; give one, with the sum of their weights")


def test_attention_sinks_concern_the_attention_term_alone() -> None:
    student = GptOssForCausalLM(
        GptOssConfig(
            vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2,
        )
    )  # fmt: skip
    teacher = ModelTeacher(toys.llama(1))
    with pytest.raises(InputError, match=r"^GptOssForCausalLM uses attention sinks, which the attention term cannot"):
        Objective([Attention()]).prepare(student, teacher)
    objective = Objective([Logits(), RouterBalance()])
    sinks = ModelTeacher(copy.deepcopy(student))
    objective.prepare(student, sinks)
    batch = toys.batch([[row] for row in toys.rows(0, [7, 5], [3, 2])])
    with objective.listening():
        objective(student, batch, sinks(batch, objective.needs)).loss.backward()
    assert all(layer.mlp.router.weight.grad.any() for layer in student.model.layers)
