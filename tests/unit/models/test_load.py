"""Loading: dtypes by role, adapters merged or beside the weights, and the header reader against safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import toys
from preceptor.models.checkpoint import check_model, source_dtype
from preceptor.models.headers import read_header
from preceptor.models.load import load_model
from preceptor.recipe import ModelSpec

IDS = torch.tensor([[1, 5, 9, 3, 7, 2]])


def tiny(tied: bool = False) -> LlamaForCausalLM:
    return toys.llama(0, **toys.TINY, tie_word_embeddings=tied)


def saved(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> str:
    tiny(**options).to(dtype).save_pretrained(folder)
    return str(folder)


def dtypes(model: torch.nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


def test_a_student_is_upcast_and_a_teacher_is_not(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", torch.bfloat16)
    student = load_model(ModelSpec(path=path), role="student")
    assert dtypes(student) == {torch.float32}
    assert all(parameter.requires_grad for parameter in student.parameters())
    teacher = load_model(ModelSpec(path=path), role="teacher")
    assert dtypes(teacher) == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training
    for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
        assert torch.equal(ours, theirs.float())


def test_dtype_as_asked(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", torch.bfloat16)
    assert dtypes(load_model(ModelSpec(path=path, dtype="float64"), role="teacher")) == {torch.float64}
    assert dtypes(load_model(ModelSpec(path=path, dtype="bfloat16"), role="student")) == {torch.bfloat16}
    assert dtypes(load_model(ModelSpec(path=path, dtype="auto"), role="student")) == {torch.bfloat16}


def test_the_stored_dtype_counts_and_not_what_the_config_says(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", torch.float32)
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "dtype": "float16"}))
    assert source_dtype(ModelSpec(path=path)) == torch.float32
    assert dtypes(load_model(ModelSpec(path=path), role="teacher")) == {torch.float32}


def test_header_agrees_with_safetensors(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(3, 5, dtype=torch.bfloat16),
        "b": torch.zeros(7, dtype=torch.int64),
        "c": torch.zeros(2, 1, 2, dtype=torch.bool),
        "d": torch.zeros(()),
        "e": torch.zeros(0, 4),
        "f": torch.zeros(4, dtype=torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors", "here")
    with safe_open(tmp_path / "x.safetensors", "pt") as stored:
        assert set(header) == set(stored.keys())
        for name, info in header.items():
            part = stored.get_slice(name)
            assert (info.dtype, list(info.shape)) == (part.get_dtype(), part.get_shape())


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted_from_the_headers(tmp_path: Path, tied: bool) -> None:
    path = saved(tmp_path / "model", tied=tied)
    expected = sum(parameter.numel() for parameter in tiny(tied).parameters())
    assert check_model(ModelSpec(path=path)).parameters == expected


def test_shards_are_read(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "model", max_shard_size="5KB")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    spec = ModelSpec(path=str(tmp_path / "model"))
    assert check_model(spec).parameters == sum(p.numel() for p in tiny().parameters())
    loaded = load_model(spec, role="teacher")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), tiny().parameters(), strict=True))


def trained_adapter(folder: Path) -> Any:
    """A LoRA adapter with weights that are not zero, saved; returns the wrapped model."""
    wrapped = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    wrapped.save_pretrained(folder)
    return wrapped.eval()


def test_adapters(tmp_path: Path) -> None:
    path = saved(tmp_path / "model")
    wrapped = trained_adapter(tmp_path / "adapter")
    with torch.no_grad():
        expected = wrapped(IDS).logits
        assert not torch.allclose(expected, tiny().eval()(IDS).logits, atol=1e-3)
        spec = ModelSpec(path=path, adapter=str(tmp_path / "adapter"))
        teacher = load_model(spec, role="teacher")
        torch.testing.assert_close(teacher(IDS).logits, expected)
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        student = load_model(spec, role="student")
        torch.testing.assert_close(student.eval()(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert {name for name, _ in student.named_parameters()} == {name for name, _ in tiny().named_parameters()}
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_merged_student_of_a_half_precision_base_is_merged_in_float32(tmp_path: Path) -> None:
    path = saved(tmp_path / "model", torch.bfloat16)
    trained_adapter(tmp_path / "adapter")
    student = load_model(ModelSpec(path=path, adapter=str(tmp_path / "adapter")), role="student")
    base = load_file(tmp_path / "model" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].float()
    lora = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    scale = 8 / 2  # PEFT's default alpha over r
    exact = base + scale * lora[f"{prefix}B.weight"] @ lora[f"{prefix}A.weight"]
    torch.testing.assert_close(student.model.layers[0].self_attn.q_proj.weight.data, exact, atol=1e-6, rtol=1e-6)


def test_the_model_is_named_as_the_recipe_names_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "model")
    assert load_model(ModelSpec(path=path), role="student").name_or_path == path


def test_a_hub_model_is_fetched_without_pickles_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "snapshot")
    asked: dict[str, Any] = {}

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    model = load_model(ModelSpec(path="org/name", revision="v1"), role="teacher")
    assert (asked["name"], asked["revision"], model.name_or_path) == ("org/name", "v1", "org/name")
    assert not any(pattern.endswith((".bin", ".pt", ".pkl", "*")) for pattern in asked["patterns"])


def test_real_weights(data_folder: Path) -> None:
    spec = ModelSpec(path=str(data_folder / "weights" / "tinystories-bitnet-3M-hf"))
    assert check_model(spec).parameters == pytest.approx(3.29e6, rel=0.01)
    assert type(load_model(spec, role="teacher")).__name__ == "BitNetForCausalLM"
