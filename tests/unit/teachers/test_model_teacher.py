"""What a live teacher leaves in memory, and teachers whose weights are elsewhere than the student."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import toys
from preceptor.errors import InputError
from preceptor.models.load import load_model
from preceptor.models.offload import is_offloaded, working_device
from preceptor.recipe import ModelSpec
from preceptor.signals import Head, Part, TokenBatch, Wanted
from preceptor.teachers import ModelTeacher

EVERYTHING = Wanted(logits=True, attention_layers=frozenset({0, 1}))


def batch() -> TokenBatch:
    return toys.batch([[row] for row in toys.rows(1, [9, 6, 11], [4, 0, 5])])


def gpt2() -> Any:
    """Queries, keys and values of this one are cut from one tensor."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config)


def signal(part: Part) -> dict[str, Tensor]:
    found = {f"q{layer}": scores.q_BHRD for layer, scores in part.attention.items()}
    found |= {f"k{layer}": scores.k_BGSD for layer, scores in part.attention.items()}
    assert part.hidden_ND is not None
    return {"hidden": part.hidden_ND, **found}


def alive() -> list[Tensor]:
    gc.collect()
    return [each for each in gc.get_objects() if type(each) in (Tensor, torch.nn.Parameter)]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2"])
def test_a_forward_leaves_the_signal_and_nothing_else(kind: str) -> None:
    """No logits, no cache, no gradients, and no view that keeps a larger tensor."""
    model = {"llama": lambda: toys.llama(0), "mixtral": lambda: toys.sparse("mixtral", 0), "gpt2": gpt2}[kind]()
    teacher, rows = ModelTeacher(model), batch()
    assert not any(each.requires_grad for each in model.parameters())
    assert rows.targets.on_host
    before = {id(each) for each in alive()}
    part = teacher.observe(rows, EVERYTHING)
    left = [each for each in alive() if id(each) not in before]
    mine = signal(part)
    assert {id(each) for each in left} == {id(each) for each in mine.values()}
    for name, each in mine.items():
        assert each.untyped_storage().nbytes() == each.nbytes, name
        assert not each.requires_grad
    N, R = rows.targets.count, rows.targets.position_BR.shape[1]
    assert mine["hidden"].shape == (N, model.config.hidden_size)
    assert mine["q0"].shape[2] == R
    assert part.head is not None
    assert part.head.weight_VD is model.get_output_embeddings().weight


def same(got: Part, expected: Part) -> None:
    for name, each in signal(expected).items():
        torch.testing.assert_close(signal(got)[name], each, rtol=0, atol=0)
    assert got.head is not None
    assert expected.head is not None
    torch.testing.assert_close(got.head.weight_VD, expected.head.weight_VD, rtol=0, atol=0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_an_offloaded_teacher_says_the_same(kind: str, tied: bool) -> None:
    def made() -> Any:
        settings = {"tie_word_embeddings": tied}
        return toys.llama(0, **settings) if kind == "llama" else toys.sparse(kind, 0, **settings)

    away = cpu_offload(made(), execution_device=torch.device("cpu"))
    assert is_offloaded(away)
    assert working_device(away) == torch.device("cpu")
    teacher, plain = ModelTeacher(away), ModelTeacher(made())
    same(teacher.observe(batch(), EVERYTHING), plain.observe(batch(), EVERYTHING))
    assert teacher.layer_shapes() == plain.layer_shapes()
    assert all(each.is_meta for each in away.parameters())


def test_weights_on_disk(tmp_path: Path) -> None:
    """Through a recipe's `device_map`; the head is fetched for its forward like any other weight."""
    toys.llama(0).save_pretrained(tmp_path)
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu"}
    places |= {"model.layers.1": "disk", "model.norm": "disk", "lm_head": "disk"}
    model = load_model(ModelSpec(path=str(tmp_path), device_map=places), role="teacher")
    assert model.lm_head.weight.is_meta
    plain = ModelTeacher(toys.llama(0)).observe(batch(), EVERYTHING)
    teacher = ModelTeacher(model)
    part = teacher.observe(batch(), EVERYTHING)
    same(part, plain)
    teacher.observe(batch(), EVERYTHING)
    same(part, plain)  # the next forward leaves it alone


def test_one_weight_that_nothing_fetches_is_enough_to_refuse() -> None:
    model = cpu_offload(toys.llama(0), execution_device=torch.device("cpu"))
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(model.lm_head)
    model.lm_head.to("meta")
    with pytest.raises(InputError, match="on no device"):
        ModelTeacher(model)


def test_a_head_elsewhere_is_copied_once() -> None:
    teacher, home = ModelTeacher(toys.llama(0)), torch.device("meta")
    head = Head(teacher.model.lm_head.weight, torch.zeros(61), 2.0, 30.0)
    there = teacher._head_on(home, head)
    assert there.weight_VD.device == there.bias_V.device == home  # type: ignore[union-attr]
    assert (there.scale, there.softcap) == (2.0, 30.0)
    assert teacher._head_on(home, Head(teacher.model.lm_head.weight)) is there
    other = Head(torch.zeros(61, 24))
    assert teacher._head_on(home, other) is not there
    assert teacher._head_on(torch.device("cpu"), head) is head


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("where", ["cpu", "waiting"])
def test_a_teacher_off_the_students_device(where: str) -> None:
    """Its signal and its head are on the device of the batch."""
    cuda = torch.device("cuda", 0)
    model = toys.llama(0) if where == "cpu" else cpu_offload(toys.llama(0), execution_device=cuda)
    part = ModelTeacher(model).observe(batch().to(cuda), EVERYTHING)
    expected = ModelTeacher(toys.llama(0)).observe(batch(), EVERYTHING)
    assert part.head is not None
    assert part.head.weight_VD.device == cuda
    for name, each in signal(part).items():
        assert each.device == cuda
        torch.testing.assert_close(each.cpu(), signal(expected)[name], atol=1e-3, rtol=1e-3)
