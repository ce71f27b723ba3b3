"""Models that cannot be combined: each refusal is one sentence, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sources
from preceptor.errors import InputError
from preceptor.models.compose import check_composition
from preceptor.models.save import save_model
from preceptor.models.sources import check_sources
from preceptor.recipe import ModelSpec, parse_recipe
from preceptor.stages import compose, merge
from preceptor.stages.context import StageContext

MEND = "; give checkpoints of one architecture, shape and tokenizer"
OTHER = "model 'A' and model 'B': "
EXECUTE: dict[str, Any] = {"compose": compose.execute, "merge": merge.execute}
STAGES: dict[str, dict[str, Any]] = {
    "compose": {"kind": "compose", "experts": ["a", "b"]},
    "merge": {"kind": "merge", "models": ["a", "b"], "alpha": 0.5},
}


def refusal(folder: Path, kind: str, **changes: Any) -> str:
    stage = {**STAGES[kind], **changes}
    raw = {"name": "r", "runs_dir": str(folder / "runs"), "data": {}, "stages": {"made": stage}}
    recipe = parse_recipe(raw, folder=folder)
    directory = folder / "runs" / "r" / "made"
    directory.mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        EXECUTE[kind](recipe.stages["made"], StageContext(recipe, "made", directory, recipe.seed, print))
    assert list(directory.iterdir()) == []
    message = str(caught.value)
    assert "\n" not in message
    for name in "abc":
        message = message.replace(repr(str(folder / name)), f"'{name.upper()}'")
    return message


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def merges_swapped(folder: Path) -> None:
    """A tokenizer with the same tokens that reads a text otherwise."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


ROPE = {"rope_type": "default", "rope_theta": 5000.0}
# What is wrong with the second model, in both stages: (how it comes about, the sentence).
UNLIKE: dict[str, tuple[Callable[[Path], object], str]] = {
    "another architecture": (
        lambda b: sources.write(b, "llama"),
        OTHER + "`model_type` is 'mistral' in the first and 'llama' in the second" + MEND,
    ),
    "another width": (
        lambda b: sources.write(b, intermediate_size=32),
        OTHER + "`intermediate_size` is 24 in the first and 32 in the second" + MEND,
    ),
    "another depth": (
        lambda b: sources.write(b, num_hidden_layers=3),
        OTHER + "`num_hidden_layers` is 2 in the first and 3 in the second" + MEND,
    ),
    "another rope": (
        lambda b: sources.write(b, rope_parameters=ROPE),
        OTHER + "`rope_parameters.rope_theta` is 10000.0 in the first and 5000.0 in the second" + MEND,
    ),
    "another kind of rope": (
        lambda b: sources.write(b, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
        OTHER + "`rope_parameters.rope_type` is 'default' in the first and 'linear' in the second" + MEND,
    ),
    "another window": (
        lambda b: sources.write(b, sliding_window=8),
        OTHER + "`sliding_window` is 4096 in the first and 8 in the second" + MEND,
    ),
    "another epsilon": (
        lambda b: sources.write(b, rms_norm_eps=1e-6),
        OTHER + "`rms_norm_eps` is 0.0001 in the first and 1e-06 in the second" + MEND,
    ),
    "tied": (
        lambda b: sources.write(b, tie_word_embeddings=True),
        OTHER + "`tie_word_embeddings` is False in the first and True in the second" + MEND,
    ),
    "other tokens": (
        lambda b: sources.write(b, letters="User: Assistant:\n\nabcdefgX 0123"),
        OTHER + "token 17 of the tokenizer is 'b' in the first and 'X' in the second" + MEND,
    ),
    "a tokenizer that reads otherwise": (
        merges_swapped,
        OTHER.removesuffix(": ") + ": their tokenizers have the same tokens but cut text differently" + MEND,
    ),
    "a tensor of another shape": (
        lambda b: edit_weights(b, lambda t: t.update({"model.norm.weight": torch.ones(8)})),
        OTHER + "`model.norm.weight` is [16] in the first and [8] in the second" + MEND,
    ),
    "a tensor is missing": (
        lambda b: edit_weights(b, lambda t: t.__delitem__("model.layers.1.mlp.up_proj.weight")),
        OTHER + "`model.layers.1.mlp.up_proj.weight` is [24, 16] in the first and absent in the second" + MEND,
    ),
    "no tokenizer": (
        lambda b: (b / "tokenizer.json").unlink(),
        "tokenizer of 'B': the folder holds none (tokenizer.json is missing); copy the tokenizer's files beside the "
        "model",
    ),
    "pickled weights": (
        lambda b: (b / "model.safetensors").rename(b / "pytorch_model.bin"),
        "model 'B': holds its weights as a pickle only (pytorch_model.bin), which can run code when read and is never "
        "loaded; convert it to safetensors with `save_pretrained` on a machine where you trust it",
    ),
    "quantised": (
        lambda b: edit_config(b, quantization_config={"quant_method": "gptq", "bits": 4}),
        "model 'B': is quantised, and packed weights cannot be combined; give the unquantised checkpoint",
    ),
    "code of its own": (
        lambda b: edit_config(b, auto_map={"AutoConfig": "c.C"}),
        "model 'B': comes with Python code of its own; give a model of an architecture in transformers",
    ),
    "a config that is not valid": (
        lambda b: edit_config(b, hidden_act=["silu"]),
        "model 'B': config.json is not valid (Validation error for field 'hidden_act'); correct it",
    ),
}


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("case", UNLIKE)
def test_models_that_do_not_go_together(case: str, kind: str, tmp_path: Path) -> None:
    spoil, sentence = UNLIKE[case]
    for name in "ab":
        sources.write(tmp_path / name)
    spoil(tmp_path / "b")
    with pytest.raises(InputError):  # by itself: before a run begins
        check_sources([ModelSpec(path=str(tmp_path / name)) for name in "ab"])
    assert refusal(tmp_path, kind) == sentence


@pytest.mark.parametrize("kind", STAGES)
def test_a_tensor_missing_from_its_shard(kind: str, tmp_path: Path) -> None:
    for name in "ab":
        sources.write(tmp_path / name)
    sources.model_of("mistral").save_pretrained(tmp_path / "b", max_shard_size="8KB")
    (tmp_path / "b" / "model.safetensors").unlink(missing_ok=True)
    index = tmp_path / "b" / "model.safetensors.index.json"
    file = json.loads(index.read_text())["weight_map"]["model.norm.weight"]
    tensors = load_file(tmp_path / "b" / file)
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "b" / file, metadata={"format": "pt"})
    assert refusal(tmp_path, kind) == (
        f"model 'B': 'model.norm.weight' is missing from {file}, though model.safetensors.index.json says it is there; "
        "copy or download the folder again"
    )


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"quantization": {"load_in_4bit": True}}, "weights are combined unquantised; leave out `quantization`"),
        ({"dtype": "bfloat16"}, "is read tensor by tensor, for which `dtype` means nothing; leave it out"),
        ({"device_map": "auto"}, "is read tensor by tensor, for which `device_map` means nothing; leave it out"),
    ],
)
def test_settings_that_mean_nothing_here(kind: str, setting: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    for name in "ab":
        sources.write(tmp_path / name)
    models = ["a", {"path": "b", **setting}]
    assert refusal(tmp_path, kind, **{"models" if kind == "merge" else "experts": models}) == f"model 'B': {sentence}"


@pytest.mark.parametrize("kind", STAGES)
def test_an_adapter_for_another_base(kind: str, tmp_path: Path) -> None:
    for name in "ab":
        sources.write(tmp_path / name)
    adapter = sources.write_adapter(tmp_path / "lora", sources.write(tmp_path / "wide", intermediate_size=32))
    models = ["a", {"path": "b", "adapter": "lora"}]
    message = refusal(tmp_path, kind, **{"models" if kind == "merge" else "experts": models})
    assert message.startswith(f"adapter {adapter!r}: does not fit the model 'B' (size mismatch for ")
    assert message.endswith("; give the base model it was trained on")


def gpt2(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    size = len(sources.tokenizer_of())
    model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2))
    save_model(model, sources.tokenizer_of(), folder, dtype=torch.float32)


# What is wrong with both experts: (how it comes about, the sentence).
NO_EXPERTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an architecture without a sparse twin": (
        gpt2,
        "is a gpt2 model; experts are taken from dense models of type llama, mistral, qwen2 or qwen3",
    ),
    "a mixture": (
        lambda folder: sources.write(folder, "mixtral", **sources.SPARSE_SIZES),
        "is a mixture of experts itself (mixtral); experts are taken from dense models of type llama, mistral, qwen2 "
        "or qwen3",
    ),
    "another mixture": (
        lambda folder: sources.write(folder, "qwen3_moe", **sources.SPARSE_SIZES),
        "is a mixture of experts itself (qwen3_moe); experts are taken from dense models of type llama, mistral, qwen2 "
        "or qwen3",
    ),
    "attention biases": (
        lambda folder: sources.write(folder, "llama", attention_bias=True),
        "has `attention_bias: True`, for which mixtral has no place; give models whose `attention_bias` is False",
    ),
    "mlp biases": (
        lambda folder: sources.write(folder, "llama", mlp_bias=True),
        "has `mlp_bias: True`, for which mixtral has no place; give models whose `mlp_bias` is False",
    ),
    "windows in some layers": (
        lambda folder: sources.write(folder, "qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1),
        "has `use_sliding_window: true`, which qwen2_moe applies to other layers; give models without windows",
    ),
    "windows in some layers of a Qwen3": (
        lambda folder: sources.write(folder, "qwen3", use_sliding_window=True, sliding_window=4, max_window_layers=1),
        "has `use_sliding_window: true`, which qwen3_moe applies to other layers; give models without windows",
    ),
    "weights without a tensor": (
        lambda folder: edit_weights(folder, lambda t: t.__delitem__("model.layers.0.input_layernorm.weight")),
        "'model.layers.0.input_layernorm.weight' is missing from the weights; the config and the weights belong to "
        "different models",
    ),
    "weights of another width": (
        lambda folder: edit_config(folder, intermediate_size=32),
        "'model.layers.0.mlp.gate_proj.weight' is [24, 16] and config.json says [32, 16]; the config and the weights "
        "belong to different models",
    ),
}


@pytest.mark.parametrize("case", NO_EXPERTS)
def test_models_that_cannot_be_experts(case: str, tmp_path: Path) -> None:
    spoil, sentence = NO_EXPERTS[case]
    for name in "ab":
        sources.write(tmp_path / name)
        spoil(tmp_path / name)
    specs = [ModelSpec(path=str(tmp_path / name)) for name in "ab"]
    with pytest.raises(InputError) as caught:
        check_composition(specs)
    assert refusal(tmp_path, "compose") == f"model 'A': {sentence}" == str(caught.value).replace(specs[0].path, "A")


def test_a_base_of_another_shape(tmp_path: Path) -> None:
    for name in "ab":
        sources.write(tmp_path / name)
    sources.write(tmp_path / "c", vocab_size=40)
    assert refusal(tmp_path, "compose", base="c") == (
        "model 'A' and model 'C': `vocab_size` is 26 in the first and 40 in the second" + MEND
    )


def test_prompts_without_text(tmp_path: Path) -> None:
    for name in "ab":
        sources.write(tmp_path / name)
    (tmp_path / "p.jsonl").write_text('{"messages": [{"role": "assistant", "content": "b"}]}')
    raw = {
        "name": "r",
        "runs_dir": str(tmp_path / "runs"),
        "data": {"p": {"path": "p.jsonl"}},
        "stages": {"made": {**STAGES["compose"], "prompts": ["p", "p"]}},
    }
    recipe = parse_recipe(raw, folder=tmp_path)
    (tmp_path / "made").mkdir()
    with pytest.raises(InputError) as caught:
        compose.execute(recipe.stages["made"], StageContext(recipe, "made", tmp_path / "made", 0, print))
    assert str(caught.value) == (
        "stages.made.prompts: p has no prompt and no text for a router to begin from; name a dataset of conversations "
        "or texts"
    )


def test_whole_numbers_that_differ(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        sources.write(tmp_path / name)
        edit_weights(tmp_path / name, lambda t, n=number: t.update(steps=torch.tensor([n])))  # type: ignore[misc]
    assert refusal(tmp_path, "merge") == (
        "model 'A' and model 'B': 'steps' holds whole numbers that differ, between which nothing can be interpolated; "
        "give models in which they are equal"
    )
