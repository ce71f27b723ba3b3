"""The paper's second stage as a recipe: what is logged, what decides about keeping a result, what the plan says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import preceptor
from invariant import routed_recipes
from preceptor.models.load import load_model
from preceptor.plan import plan, render
from preceptor.recipe import ModelSpec, Recipe, RoutesSpec, load_recipe, parse_recipe
from preceptor.running.identity import stage_identities
from preceptor.stages.ahead import check_ahead
from preceptor.system.hashes import Hashes


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its run has the base, the expert and the adapter."""
    made = tmp_path_factory.mktemp("made")
    for stage in ("start", "kd", "expert", "adapter"):
        preceptor.run(routed_recipes.recipe(made), only=stage, log=quiet)
    return made


def run(folder: Path, name: str, datasets: dict[str, Any] | None = None, **dae: Any) -> tuple[dict[str, Any], Path]:
    """The `dae` stage, run as the stage `name` after those in `folder`."""
    document = routed_recipes.document(folder, **dae)
    document["data"] |= datasets or {}
    document["stages"][name] = document["stages"].pop("dae")
    recipe = parse_recipe(document, folder=folder)
    return preceptor.run(recipe, only=name, log=quiet)["stages"][name], folder / "runs/r" / name


def logged(stage: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if "loss" in line]


@pytest.mark.parametrize("by", ["rows", "targets"])
@pytest.mark.parametrize("expert", ["expert", "adapter"])
def test_a_run_logs_targets_and_losses_of_each_route(folder: Path, expert: str, by: str) -> None:
    teacher = {"routes": {"shop": f"stage:{expert}", "general": "stage:kd"}}
    results, stage = run(folder, f"dae-{expert}-{by}", teacher=teacher, by=by)
    lines = logged(stage)
    assert len(lines) == 3
    for line in lines:
        assert line["targets"] == line["targets/shop"] + line["targets/general"]
        parts = sum(line[f"logits/{route}"] * line[f"targets/{route}"] for route in ("shop", "general"))
        assert line["logits"] == pytest.approx(parts / line["targets"], rel=1e-6)
        assert line["loss"] == pytest.approx(line["logits"], rel=1e-6)
    assert lines[0]["logits/general"] == pytest.approx(0, abs=1e-6), "the student begins as the reference"
    assert lines[0]["logits/shop"] > 1e-4
    for route in ("shop", "general"):
        assert sum(line[f"targets/{route}"] for line in lines) == results["data"][route]["targets"]
    shares = {name: each["rows"] / 12 for name, each in results["data"].items()}
    if by == "rows":
        assert shares == {"shop": 0.25, "general": 0.75}
    else:
        counted = {name: each["targets"] for name, each in results["data"].items()}
        assert counted["shop"] / sum(counted.values()) == pytest.approx(0.25, abs=0.08)
    assert results["before"]["general"]["logits"] == pytest.approx(0, abs=1e-6)
    assert results["before"]["shop"]["logits"] > results["after"]["shop"]["logits"] > 0
    card = (stage / "model/README.md").read_text()
    assert f"stage:{expert}" in card
    assert "stage:kd" in card


def test_a_column_may_give_each_row_its_route(folder: Path) -> None:
    """Ten rows in steps of four: the last step is filled up, with rows of no dataset's name."""
    results, stage = run(
        folder, "column", {"both": {"path": str(folder / "both.jsonl"), "route": "topic", "holdout": 6}},
        data="both", rows=10, teacher={"routes": {"shop": "stage:expert"}, "default": "stage:kd"},
        objective=[{"kind": "logits"}, {"kind": "next_token", "weight": 0.5, "routes": ["shop"]}],
    )  # fmt: skip
    lines = logged(stage)
    assert len(lines) == 3
    assert {"targets/shop", "targets/general"} <= lines[0].keys()
    assert list(results["data"]) == ["both"]
    assert sum(line["targets"] for line in lines) == results["data"]["both"]["targets"]
    assert all(line["targets/shop"] and line["targets/general"] for line in lines[:1])
    assert {line["next_token/general"] for line in lines if "next_token/general" in line} == {0}
    assert lines[0]["next_token/shop"] > 0
    assert set(results["before"]) == {"both"}


def test_packing_keeps_routes_apart(folder: Path) -> None:
    datasets = {"both": {"path": str(folder / "both.jsonl"), "route": "topic"}}
    how = {"data": "both", "teacher": {"routes": {"shop": "stage:expert", "general": "stage:kd"}}, "max_length": 192}
    found = []
    for packing in (False, True):
        _, stage = run(folder, f"packing-{packing}", datasets, packing=packing, **how)
        found.append([(line["targets/shop"], line["targets/general"], line["logits/shop"]) for line in logged(stage)])
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_a_mixture_of_teachers_and_mol(folder: Path) -> None:
    shares = [{"model": "stage:expert", "weight": 0.5}, {"model": "stage:adapter", "weight": 0.5}]
    _, stage = run(folder, "mixed", teacher={"routes": {"shop": shares}, "default": "stage:kd"})
    assert (stage / "model/model.safetensors").exists()
    _, stage = run(
        folder, "mol", teacher={"routes": {"general": "stage:kd"}},
        objective=[{"kind": "next_token", "routes": ["shop"]}, {"kind": "logits", "routes": ["general"]}],
    )  # fmt: skip
    line = logged(stage)[0]
    assert line["next_token/shop"] > 0
    assert line["next_token/general"] == 0
    assert line["logits/shop"] == 0


def test_the_result_loads_in_transformers(folder: Path) -> None:
    """Neither adapters nor teachers are left in what a stage writes."""
    _, stage = run(folder, "plain", teacher={"routes": {"shop": "stage:adapter", "general": "stage:kd"}})
    kd = load_model(ModelSpec(path=str(folder / "runs/r/kd/model")), role="student")
    dae = load_model(ModelSpec(path=str(stage / "model")), role="student")
    assert [name for name, _ in dae.named_parameters()] == [name for name, _ in kd.named_parameters()]
    assert sorted(file.name for file in (stage / "model").glob("*.safetensors")) == ["model.safetensors"]


# --- identity ---------------------------------------------------------------------------------------------------

FILES = """\
name: shop
data:
  shop: {path: shop.jsonl}
  general: {path: general.jsonl}
stages:
  dae:
    kind: distill
    student: base
    teacher:
      routes:
        shop: expert
        general: [{model: base, weight: 0.5}, {model: other, weight: 0.5}]
    data: {shop: 0.5, general: 0.5}
"""
DEFAULT = FILES.replace(
    "        general: [{model: base, weight: 0.5}, {model: other, weight: 0.5}]\n", "      default: base\n"
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("shop", "general"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a"}\n')
    for name in ("base", "expert", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    return tmp_path


def identity(text: str = FILES, *overrides: str) -> str:
    Path("recipe.yaml").write_text(text)
    recipe = load_recipe("recipe.yaml", overrides)
    return str(stage_identities(recipe, ["dae"], Hashes(Path("hashes.json")))["dae"]["identity"])


CHANGES: dict[str, Callable[[Path], str]] = {
    "another expert": lambda _: identity(FILES.replace("shop: expert", "shop: other")),
    "other weights of the expert": lambda folder: (
        (folder / "expert/model.safetensors").write_bytes(b"x"), identity())[1],
    "other weights of one of several": lambda folder: (
        (folder / "other/model.safetensors").write_bytes(b"x"), identity())[1],
    "swapped routes": lambda _: identity(FILES.replace("shop: expert", "shop: base")
                                         .replace("model: base", "model: expert")),
    "other weights of teachers": lambda _: identity(FILES.replace("base, weight: 0.5", "base, weight: 0.4")
                                                    .replace("other, weight: 0.5", "other, weight: 0.6")),
    "another dtype": lambda _: identity(FILES.replace("shop: expert", "shop: {path: expert, dtype: bfloat16}")),
    "a default": lambda _: identity(DEFAULT),
    "a route column": lambda _: identity(FILES, "data.shop.route=topic"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_result_changes_its_identity(change: str, files: Path) -> None:
    before = identity()
    assert CHANGES[change](files) != before


@pytest.mark.parametrize("text", [FILES, DEFAULT], ids=["list", "default"])
def test_where_teachers_lie_changes_nothing(text: str, files: Path) -> None:
    before = identity(text)
    (files / "elsewhere").mkdir()
    for name in ("base", "expert", "other"):
        (files / name).rename(files / "elsewhere" / name)
    moved = text
    for old, new in (
        ("student: base", "student: elsewhere/base"), ("shop: expert", "shop: elsewhere/expert"),
        ("model: base", "model: elsewhere/base"), ("model: other", "model: elsewhere/other"),
        ("default: base", "default: elsewhere/base"),
    ):  # fmt: skip
        moved = moved.replace(old, new)
    assert identity(moved) == before
    assert identity(moved.replace("elsewhere/expert", "{path: elsewhere/expert, device_map: auto}")) == before
    assert identity(moved.replace("elsewhere/expert", "[{model: elsewhere/expert, weight: 1}]")) == before


def test_the_record_names_inputs_by_route(files: Path) -> None:
    identity()
    record = stage_identities(load_recipe("recipe.yaml"), ["dae"], Hashes(files / "hashes.json"))["dae"]
    assert set(record["inputs"]) == {
        "student", "teacher.routes.shop", "teacher.routes.general.0.model", "teacher.routes.general.1.model",
        "data.shop", "data.general",
    }  # fmt: skip
    assert "path" not in json.dumps(
        stage_identities(load_recipe("recipe.yaml"), ["dae"], Hashes(files / "h"))["dae"]["spec"]
    )


# --- overrides, plan, checks ------------------------------------------------------------------------------------


def routes_of(recipe: Recipe) -> dict[str, Any]:
    teacher = recipe.stages["dae"].teacher  # type: ignore[union-attr]
    assert isinstance(teacher, RoutesSpec)
    return {route: [(each.model.path, each.weight) for each in shares] for route, shares in teacher.routes.items()}


def test_overrides_reach_each_route(files: Path) -> None:
    (files / "recipe.yaml").write_text(FILES)
    recipe = load_recipe("recipe.yaml", ["stages.dae.teacher.routes.shop=other"])
    assert routes_of(recipe)["shop"] == [("other", 1.0)]
    recipe = load_recipe(
        "recipe.yaml",
        ["stages.dae.teacher.routes.general.0.weight=0.25", "stages.dae.teacher.routes.general.1.weight=0.75"],
    )
    assert routes_of(recipe)["general"] == [("base", 0.25), ("other", 0.75)]
    recipe = load_recipe("recipe.yaml", ["stages.dae.teacher=expert"])
    assert recipe.stages["dae"].teacher.path == "expert"  # type: ignore[union-attr]
    recipe = load_recipe("recipe.yaml", ["stages.dae.teacher={routes: {shop: other}, default: base}"])
    assert routes_of(recipe) == {"shop": [("other", 1.0)]}
    assert parse_recipe(yaml.safe_load(yaml.safe_dump(recipe.written)), folder=files).stages == recipe.stages


def test_a_recipe_names_the_stages_of_all_its_teachers(folder: Path) -> None:
    shares = [{"model": "stage:expert", "weight": 0.5}, {"model": "stage:adapter", "weight": 0.5}]
    recipe = routed_recipes.recipe(folder, teacher={"routes": {"shop": shares}, "default": "stage:kd"})
    assert sorted(recipe.stage_reads("dae")) == ["adapter", "expert", "kd"]


@pytest.mark.parametrize("runs", ["runs", "none"], ids=["made", "unmade"])
def test_the_plan_shows_each_teacher(folder: Path, runs: str) -> None:
    recipe = routed_recipes.recipe(folder, runs, teacher={"routes": {"shop": "stage:adapter"}, "default": "stage:kd"})
    check_ahead(recipe, list(recipe.stages))
    planned = plan(recipe, log=quiet)
    models = planned["stages"]["dae"]["models"]
    assert set(models) == {"student", "teacher.routes.shop", "teacher.default"}
    text = render(planned)
    assert "  teacher.routes.shop: " in text
    assert "  teacher.default: " in text
    if runs == "none":
        assert models["teacher.routes.shop"]["parameters"] == "known after stage adapter"
        assert not (folder / "none").exists()
    else:
        assert planned["stages"]["dae"]["data"]["shop"]["rows"] == 16
