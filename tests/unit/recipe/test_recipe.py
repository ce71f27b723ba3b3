"""What a right recipe means: defaults, sugar, overrides, paths, YAML as people write it."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from preceptor.errors import InputError, InputErrors
from preceptor.recipe import (
    AttentionSpec,
    DistillStage,
    InitStage,
    LogitsSpec,
    ModelSpec,
    NextTokenSpec,
    Recipe,
    SftStage,
    expand,
    load_recipe,
    local_path,
    parse_recipe,
)
from preceptor.recipe.overrides import apply_overrides
from preceptor.recipe.training import DEFAULT_BATCH
from preceptor.recipe.yaml_text import parse_yaml
from preceptor.stages.context import StageContext

RECIPE = """\
name: shop
data:
  general: {path: owner/general, split: train_sft, holdout: 500}
  shop.v2: {path: [a.jsonl, b.jsonl], role: domain}
stages:
  student: {kind: init, config: {model_type: mistral}, tokenizer: teacher}
  kd:
    kind: distill
    student: stage:student
    teacher: {path: owner/teacher, dtype: bfloat16}
    data: {general: 0.9, shop.v2: 0.1}
    training: {learning_rate: 2e-5}
  expert: {kind: sft, model: stage:kd, data: shop.v2, lora: {r: 64}}
  written: {kind: generate, model: stage:expert, prompts: general, rows: 20}
  again: {kind: sft, model: stage:expert, data: stage:written}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def stage(recipe: Recipe, name: str, kind: type[Any]) -> Any:
    found = recipe.stages[name]
    assert type(found) is kind
    return found


def test_defaults_are_filled(file: Path) -> None:
    recipe = load_recipe(file)
    kd = stage(recipe, "kd", DistillStage)
    assert recipe.seed == 43
    assert kd.student == ModelSpec(path="stage:student")
    assert kd.teacher == ModelSpec(path="owner/teacher", dtype="bfloat16")
    assert kd.objective == [LogitsSpec(divergence="forward_kl", temperature=1.0, weight=1.0)]
    assert kd.training == {"learning_rate": 2e-5}
    assert kd.shares == {"general": 0.9, "shop.v2": 0.1}
    expert = stage(recipe, "expert", SftStage)
    assert expert.objective == [NextTokenSpec()]
    assert expert.shares == {"shop.v2": 1.0}
    assert stage(recipe, "student", InitStage).dtype == "float32"
    assert recipe.folder == file.parent.resolve()


def test_specs_are_frozen(file: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(file).seed = 1  # type: ignore[misc]


def test_which_stages_a_stage_reads(file: Path) -> None:
    recipe = load_recipe(file)
    reads = {name: recipe.stage_reads(name) for name in recipe.stages}
    assert reads == {
        "student": [],
        "kd": ["student"],
        "expert": ["kd"],
        "written": ["expert"],
        "again": ["expert", "written"],
    }
    assert recipe.stage_datasets("kd") == ["general", "shop.v2"]
    assert recipe.stage_datasets("again") == ["stage:written"]


@pytest.mark.parametrize(
    ("share", "terms"),
    [
        (0.25, [NextTokenSpec(weight=0.75), LogitsSpec(weight=0.25), AttentionSpec(weight=0.25)]),
        (1, [LogitsSpec(), AttentionSpec()]),
        (0, [NextTokenSpec()]),
        (0.9, [NextTokenSpec(weight=0.1), LogitsSpec(weight=0.9), AttentionSpec(weight=0.9)]),
    ],
)
def test_lambda_stands_for_weights(file: Path, share: float, terms: list[Any]) -> None:
    recipe = load_recipe(file, [f"stages.kd.lambda={share}"])
    assert stage(recipe, "kd", DistillStage).objective == terms


def test_an_empty_lambda_stands_for_nothing(file: Path) -> None:
    recipe = load_recipe(file, ["stages.kd.lambda=", "stages.kd.objective=[{kind: next_token}]"])
    assert stage(recipe, "kd", DistillStage).objective == [NextTokenSpec()]


def test_two_terms_of_one_kind_for_different_routes(file: Path) -> None:
    objective = "[{kind: logits, routes: [general]}, {kind: logits, routes: [shop.v2], divergence: jsd}]"
    recipe = load_recipe(file, [f"stages.kd.objective={objective}"])
    assert len(stage(recipe, "kd", DistillStage).objective) == 2


def test_evaluation_where_one_dataset_has_a_holdout(file: Path) -> None:
    assert load_recipe(file, ["stages.kd.training.eval_strategy=steps"])


def test_the_default_batch_is_that_of_transformers() -> None:
    from transformers import TrainingArguments

    assert TrainingArguments.__dataclass_fields__["per_device_train_batch_size"].default == DEFAULT_BATCH


def test_layer_pairs(file: Path) -> None:
    objective = "[{kind: attention, layers: [[0, 1], [2, 5]]}]"
    recipe = load_recipe(file, [f"stages.kd.objective={objective}"])
    assert stage(recipe, "kd", DistillStage).objective == [AttentionSpec(layers=((0, 1), (2, 5)))]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=44", ("seed",), 44),
        ("name=44", ("name",), 44),
        ("stages.kd.training.learning_rate=1e-3", ("stages", "kd", "training", "learning_rate"), 1e-3),
        ("stages.expert.training.max_steps=3", ("stages", "expert", "training", "max_steps"), 3),
        ("stages.kd.packing=true", ("stages", "kd", "packing"), True),
        ("stages.expert.lora=", ("stages", "expert", "lora"), None),
        ("stages.kd.data={general: 1}", ("stages", "kd", "data"), {"general": 1}),
        ("data.shop.v2.path.1=c=d.jsonl", ("data", "shop.v2", "path", 1), "c=d.jsonl"),
        ("stages.kd.student.revision=main", ("stages", "kd", "student", "revision"), "main"),
    ],
)
def test_overrides_reach_any_leaf(file: Path, override: str, path: tuple[Any, ...], value: Any) -> None:
    if override == "name=44":
        with pytest.raises(InputErrors, match=r"^override 'name=44': name is 44; write a name of letters"):
            load_recipe(file, [override])
        return
    here: Any = load_recipe(file, [override]).written
    for step in path:
        here = here[step]
    assert here == value
    assert type(here) is type(value)


def test_a_model_that_is_a_string_takes_keys_wherever_it_stands() -> None:
    raw = {
        "stages": {
            "d": {"teacher": {"routes": {"shop": "x"}, "default": "y"}},
            "c": {"experts": ["x", "y"]},
            "s": {"models": {"a": "x"}, "on": "x"},
        }
    }
    keys = ("d.teacher.routes.shop", "d.teacher.default", "c.experts.1", "s.models.a")
    found, _ = apply_overrides(raw, [f"stages.{key}.revision=r" for key in keys])
    assert found["stages"]["d"]["teacher"]["routes"]["shop"] == {"path": "x", "revision": "r"}
    assert found["stages"]["d"]["teacher"]["default"] == {"path": "y", "revision": "r"}
    assert found["stages"]["c"]["experts"] == ["x", {"path": "y", "revision": "r"}]
    assert found["stages"]["s"]["models"] == {"a": {"path": "x", "revision": "r"}}
    with pytest.raises(InputErrors, match=r"stages\.s\.on is 'x', which has no keys"):
        apply_overrides(raw, ["stages.s.on.revision=r"])


def test_overrides_are_remembered_and_the_last_wins(file: Path) -> None:
    recipe = load_recipe(file, ["seed=1", "seed=2"])
    assert recipe.seed == 2
    assert recipe.command.endswith("recipe.yaml seed=1 seed=2")


def test_a_mapping_instead_of_a_file(tmp_path: Path) -> None:
    value, _ = parse_yaml(RECIPE, "recipe")
    recipe = parse_recipe(value, folder=tmp_path)
    assert recipe.folder == tmp_path.resolve()
    with pytest.raises(InputErrors, match=r"^mine: sede is not a key"):
        parse_recipe({**value, "sede": 1}, name="mine")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("2.0e-5", 2e-5),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("010", 10),
        ("0x10", 16),
        ("on", "on"),
        ("no", "no"),
        ("True", True),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("[a, 1]", ["a", 1]),
        ("{on: 1}", {"on": 1}),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    parsed, _ = parse_yaml(f"a: {text}", "x")
    assert parsed == {"a": value}
    assert type(parsed["a"]) is type(value)


def test_anchors_and_merge_keys() -> None:
    text = "base: &base {r: 1, s: 2}\none: {<<: *base, s: 3}\ntwo: {s: 4, <<: [{r: 5}, *base]}\n"
    value, lines = parse_yaml(text, "x")
    assert value["one"] == {"r": 1, "s": 3}
    assert value["two"] == {"r": 5, "s": 4}
    assert lines["two", "s"] == 3


def test_variables_and_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("HOME", "/home/me")
    assert expand("$DATA/a.jsonl") == "/data/a.jsonl"
    assert expand("${DATA}b") == "/datab"
    assert expand("~/a") == "/home/me/a"
    assert expand("./a") == "./a"
    monkeypatch.delenv("DATA")
    with pytest.raises(InputError, match=r"uses the environment variable DATA, which is not set; export DATA first"):
        expand("$DATA/a")


def test_paths_are_looked_for_beside_the_recipe_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder in (beside, here):
        folder.mkdir()
        (folder / "both.jsonl").touch()
    (here / "only").mkdir()
    monkeypatch.chdir(here)
    assert local_path("both.jsonl", beside) == beside / "both.jsonl"
    assert local_path("only", beside) == here / "only"
    assert local_path("owner/name", beside) is None
    assert local_path("gpt2", beside) is None
    for missing in ("no.jsonl", "./name", "a/b/c", "/no/such", "owner/rows.parquet", "name/"):
        with pytest.raises(
            InputError, match=r"does not exist: there is no .*; mend the path, or give a Hub id owner/name"
        ):
            local_path(missing, beside)


def context(recipe: Recipe, tmp_path: Path) -> StageContext:
    return StageContext(recipe, "again", tmp_path / "runs/shop/again", 43, print)


def test_references_become_paths(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).touch()
    recipe = load_recipe(file)
    resolve = context(recipe, tmp_path)
    run = tmp_path / "runs/shop"
    teacher = resolve.resolve_model(ModelSpec(path="owner/teacher", dtype="bfloat16"))
    assert teacher == ModelSpec(path="owner/teacher", dtype="bfloat16")
    assert resolve.resolve_model(ModelSpec(path="stage:kd")).path == str(run / "kd/model")
    expert = resolve.resolve_model(ModelSpec(path="stage:expert", dtype="float32"))
    assert expert == ModelSpec(path=str(run / "kd/model"), adapter=str(run / "expert/adapter"), dtype="float32")
    assert resolve.resolve_dataset("stage:written").path == str(run / "written/rows.jsonl")
    assert resolve.resolve_dataset("general").path == "owner/general"
    assert resolve.resolve_dataset("shop.v2").path == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]


def test_the_command_line_starts_at_once_and_without_torch() -> None:
    code = (
        "import sys; from preceptor.cli import main; main(['--help']); from preceptor import load_recipe; "
        "heavy = {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules); "
        "sys.exit(f'{heavy}' if heavy else 0)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Processor time, because the wall clock of a busy machine says nothing about us.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
