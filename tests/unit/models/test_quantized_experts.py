"""Quantised sparse models: bytes, what is unpacked when, and teachers that equal their own unpacked twins."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

import toys
from preceptor.errors import InputError
from preceptor.models import quantized_experts
from preceptor.models.checkpoint import check_model
from preceptor.models.load import load_model
from preceptor.models.quantization import weight_bytes
from preceptor.models.quantized_experts import Experts4Bit, Experts8Bit, PackedExperts
from preceptor.recipe import ModelSpec
from preceptor.signals import Part, Wanted
from preceptor.teachers import ModelTeacher

pytest.importorskip("bitsandbytes")

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
DOUBLE = {**NF4, "bnb_4bit_use_double_quant": True}
INT8 = {"load_in_8bit": True}
FP4 = {"load_in_4bit": True}
# bitsandbytes' 8-bit layers round what goes into them as well, which experts do not.
INT8_EXPERTS = {**INT8, "llm_int8_skip_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
# bitsandbytes' code for some CPUs needs rows of whole blocks of 64 weights.
BLOCKS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64, "head_dim": 16}


def saved(folder: Path, kind: str = "mixtral", dtype: torch.dtype = torch.bfloat16, **changes: Any) -> str:
    settings = {**BLOCKS, "shared_expert_intermediate_size": 64, **changes}
    model = (
        toys.sparse(kind, 0, dtype, **settings) if kind in toys.SPARSE else getattr(toys, kind)(0, dtype, **settings)
    )
    model.save_pretrained(folder)
    return str(folder)


def storages(tensors: list[Any]) -> int:
    kept = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors if each is not None}
    return sum(kept.values())


def held_by(model: nn.Module) -> int:
    """Bytes of everything that a quantised model keeps, counted in its storages."""
    tensors: list[Any] = [*model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        tensors += [parameter.data, getattr(parameter, "SCB", None)]
        if state is not None:
            tensors += [state.absmax, state.code]
        if state is not None and state.nested:
            tensors += [state.offset, state.state2.absmax, state.state2.code]
    return storages(tensors)


# --- the formats, against their definitions in float64 --------------------------------------------------------


def nf4_levels() -> np.ndarray:
    """The 16 levels of arXiv 2305.14314, from the normal quantiles that define them."""
    outermost = 0.5 * ((1 - 1 / 30) + (1 - 1 / 32))
    above = norm.ppf(np.linspace(outermost, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(outermost, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([below, [0.0], above]))
    return levels / np.abs(levels).max()


def nearest(weight_OI: Tensor, levels: np.ndarray) -> np.ndarray:
    """Each block of 64 in row-major order by the level nearest to its share of the block's largest."""
    flat = weight_OI.double().numpy().ravel()
    out = np.empty_like(flat)
    for start in range(0, flat.size, 64):
        block = flat[start : start + 64]
        scale = np.abs(block).max()
        out[start : start + 64] = scale * levels[np.abs(block[:, None] / scale - levels).argmin(1)]
    return out.reshape(weight_OI.shape)


@pytest.mark.parametrize("shape", [(3, 6, 32), (2, 5, 14), (4, 8, 48)])
@pytest.mark.parametrize("double", [False, True])
def test_nf4_of_each_expert(shape: tuple[int, ...], double: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight_EOI = torch.randn(shape, generator=generator) * torch.tensor([1.0, 0.01, 30.0, 4.0])[: shape[0], None, None]
    packed = Experts4Bit(weight_EOI, kind="nf4", double=double)
    assert packed.packed.dtype == torch.uint8
    for e, weight_OI in enumerate(weight_EOI):
        got = packed[e].double().numpy()
        assert got.shape == weight_OI.shape
        # The scales' own rounding to 8 bit moves all weights of their block.
        tolerance = 0.05 if double else 1e-6
        assert np.abs(got - nearest(weight_OI, nf4_levels())).max() <= tolerance * np.abs(weight_OI.numpy()).max()


def test_int8_of_each_expert() -> None:
    weight_EOI = torch.randn(3, 5, 14, generator=torch.Generator().manual_seed(0))
    weight_EOI[1, 2] = 0
    packed = Experts8Bit(weight_EOI)
    assert packed.packed.dtype == torch.int8
    for e, weight_OI in enumerate(weight_EOI.double().numpy()):
        step_O = np.abs(weight_OI).max(1, keepdims=True) / 127
        got = packed[e].double().numpy()
        assert (np.abs(got - weight_OI) <= step_O / 2 * (1 + 1e-5)).all()
        assert np.allclose(got[np.abs(weight_OI) == step_O * 127], weight_OI[np.abs(weight_OI) == step_O * 127])


def test_bfloat16_experts_are_unpacked_in_bfloat16() -> None:
    weight_EOI = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    for packed in (Experts4Bit(weight_EOI, kind="fp4", double=False), Experts8Bit(weight_EOI)):
        assert packed[1].dtype == torch.bfloat16
        assert float((packed[1] - weight_EOI[1]).float().norm() / weight_EOI[1].float().norm()) < 0.2


# --- loading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "qwen3_moe", "llama"])
@pytest.mark.parametrize("quantization", [None, NF4, DOUBLE, INT8], ids=["none", "nf4", "double", "int8"])
def test_bytes_in_memory_are_what_is_predicted(kind: str, quantization: dict[str, Any] | None, tmp_path: Path) -> None:
    spec = ModelSpec(
        path=saved(tmp_path / "model", kind, tie_word_embeddings=kind == "llama"), quantization=quantization
    )
    for role in ("teacher", "student"):
        model = load_model(spec, role=role)
        predicted = weight_bytes(spec, check_model(spec), role=role)
        assert held_by(model) == sum(predicted.values())
        names = {name.removesuffix(".packed") for name, _ in model.named_parameters()}
        assert names <= predicted.keys()


def test_all_that_is_large_is_quantised(tmp_path: Path) -> None:
    spec = ModelSpec(path=saved(tmp_path / "model"), quantization=NF4)
    model = load_model(spec, role="teacher")
    plain = {name for name, each in model.named_parameters() if each.is_floating_point()}
    assert {name.split(".")[-2] for name in plain if "norm" not in name} == {"embed_tokens", "lm_head", "gate"}
    assert not any(each.requires_grad for each in model.parameters())
    experts = [each for each in model.modules() if isinstance(each, PackedExperts)]
    assert len(experts) == 4
    # 4 bits and one float32 scale for 64 weights, instead of 16 bits.
    assert sum(storages([*each.buffers(), each.packed.data]) for each in experts) * 32 == 9 * sum(
        each.shape.numel() * 2 for each in experts
    )


def test_modules_can_be_left_alone_and_the_head_always_is(tmp_path: Path) -> None:
    path = saved(tmp_path / "model")
    spec = ModelSpec(path=path, quantization={**NF4, "llm_int8_skip_modules": ["experts", "q_proj"]})
    model = load_model(spec, role="teacher")
    assert held_by(model) == sum(weight_bytes(spec, check_model(spec)).values())
    layer = model.model.layers[0]
    assert type(layer.mlp.experts.gate_up_proj) is nn.Parameter
    assert layer.mlp.experts.gate_up_proj.dtype == layer.self_attn.q_proj.weight.dtype == torch.bfloat16
    assert layer.self_attn.k_proj.weight.dtype == torch.uint8
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_one_projection_of_one_layer_is_unpacked_at_a_time_while_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[Tensor]] = []
    pack = quantized_experts._Bnb4BitWithExperts.pack

    def watched(self: Any, weight_EOI: Tensor) -> PackedExperts:
        assert all(before() is None for before in seen)
        seen.append(weakref.ref(weight_EOI))
        return pack(self, weight_EOI)

    monkeypatch.setattr(quantized_experts._Bnb4BitWithExperts, "pack", watched)
    load_model(ModelSpec(path=saved(tmp_path / "model", num_hidden_layers=3), quantization=NF4), role="teacher")
    assert len(seen) == 6


def test_other_loading_is_as_before(tmp_path: Path) -> None:
    """A dense model is transformers' own, and a checkpoint quantised by bitsandbytes is loaded again."""
    spec = ModelSpec(path=saved(tmp_path / "dense", "llama"), quantization=NF4)
    model = load_model(spec, role="teacher")
    batch = toys.batch([[row] for row in toys.rows(0, [7], [3])])
    expected = ModelTeacher(model).observe(batch, Wanted(logits=True)).hidden_ND
    load_model(spec, role="teacher").save_pretrained(tmp_path / "quantised")
    again = ModelSpec(path=str(tmp_path / "quantised"))
    loaded = load_model(again, role="teacher")
    assert type(loaded.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    assert torch.equal(ModelTeacher(loaded).observe(batch, Wanted(logits=True)).hidden_ND, expected)
    for dtype in (None, "bfloat16"):
        checkpoint = check_model(again.model_copy(update={"dtype": dtype}))
        files = sum(file.stat().st_size for file in (tmp_path / "quantised").glob("*.safetensors"))
        assert 0.5 * files < sum(weight_bytes(again.model_copy(update={"dtype": dtype}), checkpoint).values()) < files


def test_packed_experts_are_not_saved(tmp_path: Path) -> None:
    model = load_model(ModelSpec(path=saved(tmp_path / "model"), quantization=NF4), role="teacher")
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "again")


# --- teaching -------------------------------------------------------------------------------------------------


def twin(model: Any, path: str) -> Any:
    """A plain model with the unpacked weights of a quantised one."""
    from bitsandbytes.functional import dequantize_4bit

    plain = load_model(ModelSpec(path=path, dtype="float32"), role="teacher")
    for name, module in model.named_modules():
        if isinstance(module, PackedExperts):
            plain.get_parameter(name).data = torch.stack([module[e] for e in range(module.shape[0])])
        elif type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            plain.get_submodule(name).weight.data = dequantize_4bit(module.weight.data, state).float()
    return plain


def tensors_of(part: Part) -> dict[str, Tensor]:
    found = {"hidden": part.hidden_ND, "head": None if part.head is None else part.head.weight_VD}
    for layer, scores in part.attention.items():
        found |= {f"q{layer}": scores.q_BHRD, f"k{layer}": scores.k_BGSD}
    return {name: each for name, each in found.items() if each is not None}


@pytest.mark.parametrize("quantization", [NF4, DOUBLE, FP4, INT8_EXPERTS], ids=["nf4", "double", "fp4", "int8"])
@pytest.mark.parametrize(("kind", "padding_side"), [("mixtral", "right"), ("qwen3_moe", "left")])
def test_a_quantised_teacher_equals_its_unpacked_twin(
    kind: str, padding_side: str, quantization: dict[str, Any], tmp_path: Path
) -> None:
    path = saved(tmp_path / "model", kind, torch.float32, sharpness=3.0)
    model = load_model(ModelSpec(path=path, quantization=quantization), role="teacher")
    plain = twin(model, path)
    batch = toys.batch([[row] for row in toys.rows(1, [9, 6, 11], [4, 0, 5])], padding_side=padding_side)
    wanted = Wanted(logits=True, attention_layers=frozenset({0, 1}))
    got, expected = (tensors_of(ModelTeacher(each).observe(batch, wanted)) for each in (model, plain))
    assert got.keys() == expected.keys()
    assert len(got) == 6
    for name, each in got.items():
        torch.testing.assert_close(each, expected[name], atol=2e-5, rtol=2e-5)
    original = ModelTeacher(load_model(ModelSpec(path=path), role="teacher")).observe(batch, wanted)
    assert not torch.allclose(got["hidden"], tensors_of(original)["hidden"], atol=1e-3)


def test_one_expert_is_unpacked_at_a_time_in_a_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(ModelSpec(path=saved(tmp_path / "model"), quantization=NF4), role="teacher")
    seen: list[weakref.ref[Tensor]] = []
    unpack: Callable[[Experts4Bit, int], Tensor] = Experts4Bit.unpacked

    def watched(self: Experts4Bit, expert: int) -> Tensor:
        assert all(before() is None for before in seen)
        weight_OI = unpack(self, expert)
        seen.append(weakref.ref(weight_OI))
        return weight_OI

    monkeypatch.setattr(Experts4Bit, "unpacked", watched)
    ModelTeacher(model).observe(toys.batch([[row] for row in toys.rows(1, [9], [4])]), Wanted(logits=True))
    assert seen
    gc.collect()
    assert all(each() is None for each in seen)


def test_a_student_on_packed_experts_gets_its_gradients(tmp_path: Path) -> None:
    """The frozen base under a LoRA student: gradients pass through the experts to what lies below them."""
    path = saved(tmp_path / "model", "mixtral", torch.float32)
    student = load_model(ModelSpec(path=path, quantization=NF4), role="student")
    plain = twin(student, path)
    ids = torch.tensor([[5, 9, 3, 7]])
    grads = []
    for model in (student, plain):
        model.requires_grad_(False)
        embedding = model.get_input_embeddings().weight.requires_grad_(True)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        grads.append(embedding.grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=1e-4)
    assert float(grads[1].abs().max()) > 1e-4


def test_a_quantised_head_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(**NF4, llm_int8_skip_modules=[])
    model = AutoModelForCausalLM.from_pretrained(saved(tmp_path / "model", "llama"), quantization_config=config)
    model.save_pretrained(tmp_path / "quantised")
    with pytest.raises(InputError) as refused:
        load_model(ModelSpec(path=str(tmp_path / "quantised")), role="teacher")
    assert str(refused.value) == (
        f"model {str(tmp_path / 'quantised')!r}: its output head is quantised (torch.uint8), and the losses read the "
        "head whole; use a checkpoint quantised without its head, or the unquantised one with `quantization`"
    )
