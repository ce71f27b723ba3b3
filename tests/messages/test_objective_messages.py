"""What an objective refuses, before any training, in one sentence each."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

import toys
from preceptor.errors import InputError
from preceptor.objective import Attention, Logits, NextToken, Objective
from preceptor.teachers import ModelTeacher


def refusal(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        prepare(*args, **kwargs)
    return str(caught.value)


def prepare(terms, student, teacher=None, calibration=(), **settings) -> Objective:
    objective = Objective(terms, **settings)
    objective.prepare(student, None if teacher is None else ModelTeacher(teacher), calibration)
    return objective


def test_a_model_without_softmax_attention() -> None:
    config = MambaConfig(vocab_size=31, hidden_size=16, num_hidden_layers=2, state_size=4)
    assert refusal([Attention()], toys.llama(0), MambaForCausalLM(config)) == (
        "teacher: the attention of MambaForCausalLM cannot be tapped (0 of 2 layers, layer types "
        "['linear_attention']); the attention term needs softmax attention through transformers' attention interface "
        "in every layer; leave "
        "`{kind: attention}` out of the objective"
    )


def test_an_attention_that_is_not_what_it_seems() -> None:
    """A layer that adds a bias to its scores would be distilled wrongly, and silently."""
    model = toys.llama(0, attn_implementation="eager")

    def biased(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        distance = torch.arange(query.shape[2])[:, None] - torch.arange(key.shape[2])[None]
        scores = query @ key.mT * scaling - 3.0 * distance.abs()
        weights = scores.masked_fill(distance < 0, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2), weights

    import sys

    module = sys.modules[type(model).__module__]
    original = module.eager_attention_forward
    module.eager_attention_forward = biased
    try:
        said = refusal([Attention()], model, toys.llama(1))
    finally:
        module.eager_attention_forward = original
    assert said.startswith("student: the attention of LlamaForCausalLM is not softmax(scale·q·kᵀ) of the tapped")
    assert said.endswith("leave `{kind: attention}` out of the objective")


def test_gpt2_is_tapped_like_any_other() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_embd=24, n_layer=2, n_head=4, n_positions=32)
    links = prepare([Attention()], toys.llama(0, num_key_value_heads=4), GPT2LMHeadModel(config)).links["teacher"]
    assert [link.teacher_layer for link in links.values()] == [0, 1]


def test_terms_without_a_teacher() -> None:
    assert refusal([Logits(), Attention()], toys.llama(0)) == (
        "objective: attention and logits follow a teacher, and none was given; name one"
    )


def test_no_term_with_weight() -> None:
    assert refusal([NextToken(weight=0.0)], toys.llama(0)) == (
        "objective: no term has a weight above 0; give at least one term to minimise"
    )


def test_a_route_that_is_no_dataset() -> None:
    assert refusal([NextToken(routes=("shp",))], toys.llama(0), route_names=("general", "shop")) == (
        "objective: next_token names the route 'shp'; the stage's datasets are general, shop"
    )


def test_two_terms_that_no_log_could_tell_apart() -> None:
    assert refusal([Logits(), Logits(temperature=2.0)], toys.llama(0)) == (
        "objective: two terms are logits; give one, or different routes"
    )


def test_a_teacher_without_weights() -> None:
    model = toys.llama(1)
    model.lm_head.to("meta")
    with pytest.raises(InputError) as caught:
        ModelTeacher(model)
    assert str(caught.value) == (
        "teacher: some of its weights are on no device, and nothing fetches them; load it with a `device_map` (`cpu` "
        "and `disk` are devices there), quantise it, or use a smaller teacher"
    )


def test_two_attention_terms() -> None:
    assert refusal([Attention(), Attention()], toys.llama(0)) == (
        "objective: two attention terms; give one and set its layers and routes"
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Logits(weight=-1), "logits: weight -1 is out of range; give a number of at least 0"),
        (lambda: Logits(weight=float("nan")), "logits: weight nan is out of range; give a number of at least 0"),
        (lambda: Logits(temperature=0), "logits: temperature 0 is out of range; give a number above 0"),
        (lambda: Logits(beta=1.0), "logits: beta 1.0 is out of range; give a number between 0 and 1"),
        (
            lambda: Logits(divergence="kl"),
            "logits: divergence 'kl' is unknown; give one of forward_kl, reverse_kl, jsd, skew_kl",
        ),
    ],
)
def test_values_out_of_range(make, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == sentence


def test_maps_that_do_not_fit() -> None:
    deep = toys.llama(1, num_hidden_layers=3)
    assert refusal([Attention(layers="identity")], toys.llama(0), deep) == (
        "attention: layers: identity needs equal depth, but the student has 2 layers and the teacher 3; use uniform, "
        "last, assign or pairs"
    )
    assert refusal([Attention(layers=[(0, 3)])], toys.llama(0), deep) == (
        "attention: layers names the pair [0, 3], but the student has layers 0..1 and the teacher 0..2; give pairs "
        "[student layer, teacher layer] within these"
    )
    many = toys.llama(1, num_attention_heads=6, num_key_value_heads=2, head_dim=4)
    assert refusal([Attention(heads="identity")], toys.llama(0), many) == (
        "attention: heads: identity needs equal head counts, but the student has 4 and the teacher 6; use assign"
    )
    assert refusal([Attention()], toys.llama(0), many) == (
        "attention: head or layer maps are chosen on calibration rows, and none with a target was given; pass "
        "calibration rows, or set heads and layers to a policy that needs none"
    )


def test_a_head_that_is_not_linear() -> None:
    student = toys.llama(0)
    student.lm_head = nn.Sequential(nn.Linear(24, 61))
    assert refusal([NextToken()], student) == (
        "LlamaForCausalLM has no linear output head to compute the losses in; accepted are transformers' causal "
        "language models (AutoModelForCausalLM)"
    )


def test_an_output_head_that_is_split_over_processes() -> None:
    """As tensor parallelism leaves it; FSDP and ZeRO make it whole for the head's forward."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    student, batch = toys.llama(0), toys.batch([[row] for row in toys.rows(0, [7], [3])])
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        student.lm_head.weight = nn.Parameter(distribute_tensor(student.lm_head.weight.detach(), mesh, [Shard(0)]))
        objective = Objective([NextToken()])
        objective.prepare(student)
        with pytest.raises(InputError) as caught:
            objective(student, batch)
    finally:
        distributed.destroy_process_group()
    assert str(caught.value) == (
        "LlamaForCausalLM: its output head is split over processes while it computes (tensor parallelism), and the "
        "losses need whole rows of logits; load it without tp_plan, and share it out with fsdp or deepspeed"
    )


def test_use_outside_listening_is_an_error_and_not_a_silent_loss_of_gradient() -> None:
    student, teacher = toys.llama(0), ModelTeacher(toys.llama(1))
    objective = prepare([Logits(), Attention()], student, toys.llama(1))
    batch = toys.batch([[row] for row in toys.rows(0, [7, 5], [3, 2])])
    signal = teacher(batch, objective.needs)
    with pytest.raises(RuntimeError, match=r"were not tapped; call the objective inside `with objective\.listening"):
        objective(student, batch, signal)
    with objective.listening():
        sums = objective(student, batch, signal)
    with pytest.raises(RuntimeError, match=r"the backward runs outside `with objective\.listening"):
        sums.loss.backward()


def test_the_models_are_left_as_they_were() -> None:
    """Taps are scoped: registry, head and forward are restored, also after an error."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    mapping = type(ALL_ATTENTION_FUNCTIONS)._global_mapping
    before = dict(mapping)
    student = toys.llama(0)
    objective = prepare([Logits(), Attention()], student, toys.llama(1))
    broken = toys.batch([[row] for row in toys.rows(0, [7], [3])])
    broken.input_ids[0, 0] = 999
    with pytest.raises(IndexError), objective.listening():
        objective(student, broken)
    assert mapping == before
    assert "forward" not in student.__dict__
    assert "forward" not in student.lm_head.__dict__
