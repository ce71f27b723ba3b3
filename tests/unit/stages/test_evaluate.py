"""The evaluate stage: from a recipe to scores.json, with splits, references and adapters resolved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import toys
from preceptor.errors import InputError
from preceptor.evaluation.predictions import read_predictions
from preceptor.models.save import save_model
from preceptor.models.tokenizers import train_tokenizer
from preceptor.recipe import parse_recipe
from preceptor.runs import run

TEXT = "User: Assistant:\n\nabcdefgh 0123456789"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, an adapter on the first, general rows and shop rows with their test rows."""
    folder = tmp_path_factory.mktemp("recipe")
    tokenizer = train_tokenizer([TEXT], vocab_size=100, kind="characters", announce=print)
    sizes = {**toys.TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "initializer_range": 0.3}
    for seed, name in enumerate(("kd", "expert")):
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        model = toys.llama(seed, **sizes, **ids)
        save_model(model, tokenizer, folder / name, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    save_model(adapted, tokenizer, folder / "adapter", dtype=torch.float32)
    rows: dict[str, list[dict[str, Any]]] = {"general": [], "shop": [], "shop_test": []}
    for i in range(40):
        rows["general"].append(chat(f"{i}", "ab"[i % 2], metric="exact", task=f"k{i % 3}"))
        rows["shop"].append(chat(f"a {i}", "c"))
    for i in range(12):
        choose = {"metric": "accuracy", "choices": ["ab", "cd ef", "g"], "task": "pick"}
        rows["shop_test"].append(chat(f"b {i}", ["ab", "g"][i % 2], **choose))
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def chat(prompt: str, answer: str, **extra: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], **extra}


def recipe(folder: Path, name: str, **stage: Any) -> Any:
    given: dict[str, Any] = {
        "kind": "evaluate",
        "models": ["kd", {"path": "expert", "adapter": "adapter"}],
        "reference": "kd",
        "expert": "expert",
        "on": ["general", "shop"],
        "max_new_tokens": 3,
        "batch_size": 8,
        "resamples": 100,
        **stage,
    }
    data = {
        "general": {"path": "general.jsonl", "holdout": 9},
        "shop": {"path": "shop.jsonl", "test": "shop_test.jsonl", "role": "domain"},
    }
    raw = {"name": name, "runs_dir": str(folder / "runs"), "data": data, "stages": {"scores": given}}
    return parse_recipe(raw, folder=folder)


def test_a_recipe_is_scored(folder: Path) -> None:
    said: list[str] = []
    done = run(recipe(folder, "whole"), log=said.append)["stages"]["scores"]
    directory = folder / "runs" / "whole" / "scores"
    scores = json.loads((directory / "scores.json").read_text())
    assert (scores["reference"], scores["expert"]) == ("kd", "expert")
    assert list(scores["models"]) == ["kd", "adapter", "expert"]
    assert {name: (data["role"], data["part"], data["rows"]) for name, data in scores["datasets"].items()} == {
        "general": ("general", "holdout", 9),
        "shop": ("domain", "test", 12),
    }
    files = {name: read_predictions(directory / "predictions" / f"{name}.jsonl") for name in scores["models"]}
    assert {len(rows) for rows in files.values()} == {21}
    # The adapter is used: its model is neither the base it is on nor the reference.
    likelihoods = [[row["nll"] for row in rows] for rows in files.values()]
    assert likelihoods[0] != likelihoods[1] != likelihoods[2]
    assert all(row["kl"] > 0 for row in files["adapter"])
    assert all(row["kl"] < 1e-5 for row in files["expert"] if row["role"] == "domain")
    for name, entry in scores["models"].items():
        assert done["models"][name]["general"] == entry["general"]
        assert done["models"][name]["kl_expert"] == entry["kl_expert"]
    assert done["warnings"] == scores["warnings"]
    assert "scores: shop: 12 test rows (domain)" in said
    assert any("model" in line and "general" in line and "KL to expert" in line for line in said)


def test_rows_limits_every_dataset_alike(folder: Path) -> None:
    run(recipe(folder, "few", rows=5, expert=None), log=lambda line: None)
    directory = folder / "runs" / "few" / "scores"
    scores = json.loads((directory / "scores.json").read_text())
    assert [data["rows"] for data in scores["datasets"].values()] == [5, 5]
    assert scores["expert"] is None
    ids = [
        [row["id"] for row in read_predictions(directory / "predictions" / f"{name}.jsonl")]
        for name in scores["models"]
    ]
    assert ids[0] == ids[1]
    assert scores["models"]["kd"]["kl_expert"] is None


def test_a_row_that_cannot_be_scored_leaves_nothing_behind(folder: Path) -> None:
    (folder / "odd.jsonl").write_text(json.dumps(chat("q", "a", metric="accuracy")) + "\n")
    stage = {"kind": "evaluate", "models": ["kd"], "on": ["odd"]}
    data = {"odd": {"path": "shop.jsonl", "test": "odd.jsonl"}}
    raw = {"name": "odd", "runs_dir": str(folder / "runs"), "data": data, "stages": {"scores": stage}}
    with pytest.raises(InputError, match=r"odd\.jsonl:1: has the metric 'accuracy' and no `choices`"):
        run(parse_recipe(raw, folder=folder), log=lambda line: None)
    assert not (folder / "runs" / "odd" / "scores").exists()
