"""The merge stage: a model between two others, as a recipe asks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import sources
from preceptor.models.load import load_model
from preceptor.models.save import save_model
from preceptor.models.tokenizers import load_tokenizer
from preceptor.recipe import ModelSpec, parse_recipe
from preceptor.stages.context import StageContext
from preceptor.stages.merge import execute
from preceptor.system.files import verify_directory


def run(folder: Path, log: Any = print, **stage: Any) -> tuple[dict[str, Any], Path]:
    raw = {
        "name": "r",
        "runs_dir": str(folder / "runs"),
        "stages": {"between": {"kind": "merge", "models": ["a", "b"], **stage}},
        "data": {},
    }
    recipe = parse_recipe(raw, folder=folder)
    directory = folder / "runs" / "r" / "between"
    directory.mkdir(parents=True, exist_ok=True)
    results = execute(recipe.stages["between"], StageContext(recipe, "between", directory, recipe.seed, log))
    assert [file.name for file in directory.iterdir()] == ["model"]
    json.dumps(results)
    return results, directory / "model"


def test_the_first_models_config_tokenizer_and_dtype(tmp_path: Path) -> None:
    tokenizer = sources.tokenizer_of()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    save_model(sources.model_of("mistral", 0), tokenizer, tmp_path / "a", dtype=torch.bfloat16)
    sources.write(tmp_path / "b", seed=1)
    said: list[str] = []
    results, model = run(tmp_path, said.append, alpha=0.3, method="slerp")
    verify_directory(model)
    spec = ModelSpec(path=str(model))
    loaded = load_model(spec, role="teacher")
    assert loaded.dtype == torch.bfloat16
    assert load_tokenizer(spec).chat_template == tokenizer.chat_template
    assert said == ["between: 0.7 of a, 0.3 of b, slerp"]
    assert results.pop("seconds") >= 0
    parameters = sum(parameter.numel() for parameter in loaded.parameters())
    assert results == {"parameters": parameters, "method": "slerp", "alpha": 0.3}
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (model, tmp_path / "a"))
    assert ours == theirs
    assert "| second | b |" in (model / "README.md").read_text()


def test_linear_is_the_default_and_a_lora_expert_is_merged_first(tmp_path: Path) -> None:
    base = sources.write(tmp_path / "a")
    sources.write_adapter(tmp_path / "lora", base)
    said: list[str] = []
    models = ["a", {"path": "a", "adapter": "lora"}]
    _, model = run(tmp_path, said.append, models=models, alpha=0.5)
    assert said[0] == f"between: merges the adapter '{tmp_path}/lora' into '{tmp_path}/a', in memory"
    assert said[1] == "between: 0.5 of a, 0.5 of a with lora, linear"
    dense = load_file(tmp_path / "a" / "model.safetensors")
    full = sources.with_adapter(base, str(tmp_path / "lora")).state_dict()
    for name, tensor in load_file(model / "model.safetensors").items():
        torch.testing.assert_close(tensor, (dense[name] + full[name]) / 2, rtol=0, atol=1e-6)
    assert "| second | a with lora |" in (model / "README.md").read_text()


def test_a_merge_of_a_merge_gives_the_same_config(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        sources.write(tmp_path / name, "mixtral", seed, **sources.SPARSE_SIZES)
    _, model = run(tmp_path, alpha=0.5)
    model.rename(tmp_path / "c")
    _, model = run(tmp_path, models=["c", "a"], alpha=0.0)
    assert load_file(model / "model.safetensors").keys() == load_file(tmp_path / "a" / "model.safetensors").keys()
    assert (model / "config.json").read_text() == (tmp_path / "c" / "config.json").read_text()
