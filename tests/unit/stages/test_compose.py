"""The compose stage: a student from other models, as a recipe asks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sources
from preceptor.data.template import DEFAULT_TEMPLATE
from preceptor.errors import InputError
from preceptor.models.load import load_model
from preceptor.models.save import save_model
from preceptor.models.tokenizers import load_tokenizer
from preceptor.recipe import ModelSpec, parse_recipe
from preceptor.stages.compose import execute
from preceptor.stages.context import StageContext
from preceptor.system.files import verify_directory


def run(folder: Path, log: Any = print, *, data: dict[str, Any] | None = None, **stage: Any) -> dict[str, Any]:
    raw = {
        "name": "r",
        "seed": 3,
        "runs_dir": str(folder / "runs"),
        "data": data or {},
        "stages": {"student": {"kind": "compose", "experts": ["a", "b"], **stage}},
    }
    recipe = parse_recipe(raw, folder=folder)
    directory = folder / "runs" / "r" / "student"
    directory.mkdir(parents=True, exist_ok=True)
    results = execute(recipe.stages["student"], StageContext(recipe, "student", directory, recipe.seed, log))
    assert [file.name for file in directory.iterdir()] == ["model"]
    json.dumps(results)
    return results


def model_of(folder: Path) -> Path:
    return folder / "runs" / "r" / "student" / "model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sources.write(tmp_path / "a", seed=0, dtype=torch.bfloat16)
    sources.write(tmp_path / "b", seed=1, dtype=torch.bfloat16)
    return tmp_path


def conversations(folder: Path, name: str, words: str, rows: int = 6) -> dict[str, Any]:
    lines = []
    for i in range(rows):
        asked = f"{words * (i + 1)}"
        lines.append(
            json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "a"}]})
        )
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return {"path": f"{name}.jsonl"}


def test_a_student_that_loads_with_the_first_experts_tokenizer_and_dtype(folder: Path) -> None:
    said: list[str] = []
    results = run(folder, said.append)
    verify_directory(model_of(folder))
    spec = ModelSpec(path=str(model_of(folder)))
    model = load_model(spec, role="teacher")
    assert model.dtype == torch.bfloat16
    assert results.pop("seconds") >= 0
    assert results == {
        "architecture": "MixtralForCausalLM",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "active_parameters": results["active_parameters"],
        "experts": 2,
        "experts_per_token": 1,
        "router": "random",
    }
    assert results["parameters"] - results["active_parameters"] == 2 * 3 * 16 * 24
    assert load_tokenizer(spec).get_vocab() == sources.tokenizer_of().get_vocab()
    assert said == [
        f"student: MixtralForCausalLM of 2 experts, 1 per token; {results['parameters']:,} parameters, "
        f"{results['active_parameters']:,} of them at work on a token",
        "student: with 1 expert per token its weight is always 1, so the router learns from no loss but "
        "`router_balance`",
    ]
    card = (model_of(folder) / "README.md").read_text()
    assert "| experts | a, b |" in card
    assert "| base | a |" in card


def test_a_dense_ensemble_is_called_one(folder: Path) -> None:
    said: list[str] = []
    run(folder, said.append, experts_per_token=2)
    assert said[1:] == [
        "student: 2 of 2 experts per token is a dense ensemble, not a sparse model: every expert works on every token"
    ]


def test_routers_that_choose_nothing_and_experts_that_are_equal_are_remarked_on(folder: Path) -> None:
    said: list[str] = []
    run(folder, said.append, experts=["a", "a", "b"], router="uniform", experts_per_token=2)
    assert said[1:] == [
        "student: all router logits are 0, so every token has the same 2 of 3 experts until training moves the router",
        "student: experts of one source begin equal; `noise` would tell them apart",
    ]
    said.clear()
    run(folder, said.append, experts=["a", "a"], experts_per_token=2, noise=0.01)
    assert not [line for line in said if "begin equal" in line]


def test_the_base_gives_what_is_no_expert_and_its_tokenizer_and_settings(folder: Path) -> None:
    tokenizer = sources.tokenizer_of()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    save_model(sources.model_of("mistral", 7), tokenizer, folder / "c", dtype=torch.float32)
    (folder / "c" / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    run(folder, base="c", dtype="float32")
    result, base = load_file(model_of(folder) / "model.safetensors"), load_file(folder / "c" / "model.safetensors")
    assert torch.equal(result["lm_head.weight"], base["lm_head.weight"])
    spec = ModelSpec(path=str(model_of(folder)))
    assert load_tokenizer(spec).chat_template == tokenizer.chat_template
    assert load_model(spec, role="teacher").generation_config.eos_token_id == [2, 5]
    run(folder, base="average", dtype="float32")
    result = load_file(model_of(folder) / "model.safetensors")
    both = [load_file(folder / name / "model.safetensors")["lm_head.weight"].float() for name in "ab"]
    torch.testing.assert_close(result["lm_head.weight"], sum(both) / 2)
    assert "| base | the experts' mean |" in (model_of(folder) / "README.md").read_text()


def test_prompts_for_the_router(folder: Path) -> None:
    data = {"letters": conversations(folder, "letters", "ab"), "digits": conversations(folder, "digits", "01")}
    said: list[str] = []
    results = run(folder, said.append, data=data, prompts=["letters", "digits"], prompt_rows=4)
    assert results["router"] == "hidden"
    assert "student: routers begin from the hidden states of prompts: 4 of letters, 4 of digits" in said
    assert "student: the model has no chat template; the default one is used" in said
    spec = ModelSpec(path=str(model_of(folder)))
    assert load_tokenizer(spec).chat_template == DEFAULT_TEMPLATE  # the one whose prompts the router knows
    first = load_file(model_of(folder) / "model.safetensors")
    run(folder, data=data, prompts=["digits", "letters"], prompt_rows=4)
    swapped = load_file(model_of(folder) / "model.safetensors")
    for layer in (0, 1):
        name = f"model.layers.{layer}.block_sparse_moe.gate.weight"
        torch.testing.assert_close(first[name], swapped[name].flip(0), rtol=0, atol=1e-2)
        assert first[name].any()


def test_texts_do_as_prompts_too(folder: Path) -> None:
    for name, text in (("x", "abba"), ("y", "0123")):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text * n}) for n in range(1, 5)))
    data = {name: {"path": f"{name}.jsonl", "targets": "all"} for name in "xy"}
    said: list[str] = []
    run(folder, said.append, data=data, prompts=["x", "y"])
    assert "student: routers begin from the hidden states of prompts: 4 of x, 4 of y" in said


def test_one_dataset_for_two_experts_is_refused_and_nothing_is_left(folder: Path) -> None:
    data = {"letters": conversations(folder, "letters", "ab")}
    with pytest.raises(InputError) as caught:
        run(folder, data=data, prompts=["letters", "letters"])
    assert str(caught.value) == (
        "stages.student.prompts: those of experts 0 and 1 give the same hidden states in layer 0, so no router can "
        "tell them apart; name datasets that differ, or leave `prompts` out"
    )
    assert list((folder / "runs" / "r" / "student").iterdir()) == []


def test_an_interrupted_stage_starts_over(folder: Path) -> None:
    left = folder / "runs" / "r" / "student"
    for name in (".merged", ".model.writing"):
        (left / name / "0").mkdir(parents=True)
        (left / name / "junk.safetensors").write_text("x")
    run(folder)
    verify_directory(model_of(folder))
