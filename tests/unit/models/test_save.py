"""Saving: whole or absent, in the source's dtype, tied weights once, nothing that is a pickle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from preceptor.models.checkpoint import source_dtype
from preceptor.models.load import load_model
from preceptor.models.save import save_model
from preceptor.models.tokenizers import load_tokenizer, train_tokenizer
from preceptor.recipe import ModelSpec
from preceptor.system.files import verify_directory

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}


def tiny(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    model = tiny(tied)
    tokenizer = train_tokenizer(["abc"], vocab_size=40, kind="characters", announce=print)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    save_model(model, tokenizer, tmp_path / "model", dtype=dtype, card="# card\n")
    verify_directory(tmp_path / "model")
    assert not [file for file in tmp_path.iterdir() if file.name != "model"]
    assert not [file for file in (tmp_path / "model").iterdir() if file.suffix in (".bin", ".pt", ".pkl")]
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    spec = ModelSpec(path=str(tmp_path / "model"))
    assert source_dtype(spec) == dtype
    loaded = load_model(spec, role="teacher")
    for ours, theirs in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs.to(dtype))
    assert load_tokenizer(spec).chat_template == tokenizer.chat_template
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # the live model is as it was
    assert (tmp_path / "model" / "README.md").read_text() == "# card\n"


def test_experts_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2))
    save_model(model, None, tmp_path / "model", dtype=torch.float32)
    loaded = load_model(ModelSpec(path=str(tmp_path / "model")), role="teacher")
    for (name, ours), theirs in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_an_adapter_alone(tmp_path: Path) -> None:
    wrapped = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj"]))
    save_model(wrapped, None, tmp_path / "adapter", dtype=torch.bfloat16)
    verify_directory(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(stored) == 4
    assert all("lora_" in name for name in stored)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_weights_gathered_by_the_caller_are_the_ones_written(tmp_path: Path) -> None:
    model = tiny()
    gathered = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    save_model(model, None, tmp_path / "model", dtype=torch.float32, state_dict=gathered)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert set(stored) == set(gathered)
    assert all(bool((tensor == 1).all()) for tensor in stored.values())


def test_a_killed_save_leaves_no_model_and_the_next_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("preceptor.models.save.publish_directory", killed)
        with pytest.raises(KeyboardInterrupt):
            save_model(tiny(), None, tmp_path / "model", dtype=torch.float32)
    assert not (tmp_path / "model").exists()
    save_model(tiny(), None, tmp_path / "model", dtype=torch.float32)
    verify_directory(tmp_path / "model")
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_generation_settings_that_contradict_each_other_do_not_stop_a_save(tmp_path: Path) -> None:
    model = tiny()
    model.generation_config.do_sample = False
    model.generation_config.temperature = 0.3
    model.generation_config.eos_token_id = [2, 7]
    save_model(model, None, tmp_path / "model", dtype=torch.float32)
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [2, 7]
    assert "temperature" not in settings
