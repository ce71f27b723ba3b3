"""What makes a stage run again, where only some stages read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from preceptor.recipe import parse_recipe
from preceptor.running.identity import differences, stage_identities
from preceptor.system.hashes import Hashes


def identities(folder: Path, **dataset: Any) -> dict[str, str]:
    raw = {
        "name": "r",
        "data": {"shop": {"path": "shop.jsonl", "holdout": 1, **dataset}},
        "stages": {
            "sft": {"kind": "sft", "model": "m", "data": "shop"},
            "scores": {"kind": "evaluate", "models": ["m"], "on": ["shop"]},
        },
    }
    recipe = parse_recipe(raw, folder=folder)
    found = stage_identities(recipe, recipe.stages, Hashes(folder / "hashes.json"))
    return {name: each["identity"] for name, each in found.items()}


def test_how_rows_are_scored_makes_no_model_be_trained_again(tmp_path: Path) -> None:
    (tmp_path / "shop.jsonl").write_text("{}\n")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    before = identities(tmp_path)
    for key, value in (("role", "domain"), ("metric", "exact")):
        after = identities(tmp_path, **{key: value})
        assert after["sft"] == before["sft"]
        assert after["scores"] != before["scores"]
    after = identities(tmp_path, holdout=2)
    assert after["sft"] != before["sft"]


def test_how_weights_are_spread_or_compiled_trains_nothing_again(tmp_path: Path) -> None:
    (tmp_path / "shop.jsonl").write_text("{}\n")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")

    def identity(training: dict[str, Any], **teacher: Any) -> str:
        stage = {"kind": "distill", "student": "m", "teacher": {"path": "m", **teacher}, "data": "shop"}
        raw = {
            "name": "r",
            "data": {"shop": {"path": "shop.jsonl"}},
            "stages": {"kd": {**stage, "training": training}},
        }
        recipe = parse_recipe(raw, folder=tmp_path)
        return str(stage_identities(recipe, ["kd"], Hashes(tmp_path / "hashes.json"))["kd"]["identity"])

    before = identity({})
    assert identity({"fsdp": True, "fsdp_config": {"reshard_after_forward": False}}) == before
    assert identity({"torch_compile": True, "torch_compile_backend": "aot_eager"}) == before
    assert identity({}, sharded=False) == before
    assert identity({"deepspeed": {"zero_optimization": {"stage": 3}}}) != before


def test_a_newer_version_is_named_where_it_gives_other_results() -> None:
    old: dict[str, Any] = {"spec": {"rows": 1}, "seed": 43, "inputs": {}, "results_version": 1}
    said = "by another version of preceptor, and this one gives other results"
    assert differences(old, {**old, "results_version": 2}) == [said]
    assert differences(old, {**old, "spec": {"rows": 2}}) == ["spec.rows was 1, is 2"]
