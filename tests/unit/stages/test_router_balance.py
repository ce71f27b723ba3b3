"""A sparse student is fine-tuned and distilled by a recipe with router_balance; a dense one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import preceptor
from invariant.recipes import SHAPE, document
from preceptor.errors import InputError
from preceptor.objective import NextToken, RouterBalance
from preceptor.recipe import parse_recipe
from preceptor.stages.build import build_terms

TRAINING = {
    "per_device_train_batch_size": 4,
    "max_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
}


def stages(folder: Path, objective: list[dict[str, Any]], **student: Any) -> Any:
    raw = document(folder, "runs", objective=objective, training=TRAINING)
    raw["stages"]["student"]["config"] = {**SHAPE, "num_hidden_layers": 1, **student}
    raw["stages"]["sft"] = {
        "kind": "sft", "model": "stage:student", "data": "shop", "rows_per_step": 8, "max_length": 96,
        "objective": [{"kind": "next_token"}, {"kind": "router_balance"}], "training": TRAINING,
    }  # fmt: skip
    return parse_recipe(raw, folder=folder)


def test_it_trains_in_both_kinds_of_stages(tmp_path: Path) -> None:
    objective = [{"kind": "logits"}, {"kind": "attention", "layers": "last"}, {"kind": "router_balance", "weight": 0.1}]
    recipe = stages(tmp_path, objective, model_type="mixtral", num_local_experts=3, num_experts_per_tok=2)
    results = preceptor.run(recipe, log=lambda line: None)["stages"]
    for name, others in (("kd", {"logits": 1.0, "attention": 1.0}), ("sft", {"next_token": 1.0})):
        weights = {**others, "router_balance": 0.1 if name == "kd" else 0.01}
        logged = [json.loads(line) for line in (tmp_path / f"runs/r/{name}/metrics.jsonl").read_text().splitlines()]
        assert len(logged) == 2
        for line in logged:
            assert line["loss"] == pytest.approx(sum(line[term] * weight for term, weight in weights.items()), rel=1e-5)
            assert 1.9 < line["router_balance"] < 3
            assert 0 <= line["expert_share_min"] <= 1 / 3 <= line["expert_share_max"] <= 0.5
        assert 1.9 < results[name]["after"]["shop"]["router_balance"] < 3


def test_a_dense_student_is_refused(tmp_path: Path) -> None:
    recipe = stages(tmp_path, [{"kind": "logits"}])
    preceptor.run(recipe, only="student", log=lambda line: None)
    with pytest.raises(InputError, match=r"router_balance: the student \(MistralForCausalLM\) is dense"):
        preceptor.run(recipe, only="sft", log=lambda line: None)
    assert not (tmp_path / "runs/r/sft/stage.json").exists()


def test_the_spec_becomes_the_term(tmp_path: Path) -> None:
    recipe = stages(tmp_path, [{"kind": "router_balance", "weight": 0.3}, {"kind": "logits"}])
    assert build_terms(recipe.stages["sft"]) == [NextToken(), RouterBalance(0.01)]
    assert build_terms(recipe.stages["kd"])[0] == RouterBalance(0.3)
