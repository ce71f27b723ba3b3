"""A plan tells what a run would do, and writes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from preceptor.cli import main
from preceptor.errors import InputError
from preceptor.plan import plan, render
from preceptor.recipe import load_recipe
from preceptor.runs import run

RECIPE = """\
name: tiny
data:
  shop: {path: shop.jsonl, holdout: 2, allow_drops: true}
stages:
  student:
    kind: init
    config: {model_type: llama, hidden_size: 8, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
             num_key_value_heads: 1, vocab_size: 64}
    tokenizer: {kind: characters, train_on: shop, vocab_size: 64}
  sft: {kind: sft, model: stage:student, data: shop, rows_per_step: 4, max_length: 64,
        training: {per_device_train_batch_size: 4}}
  stories: {kind: generate, model: stage:sft, rows: 3}
  more: {kind: sft, model: stage:sft, data: {shop: 0.5, stage:stories: 0.5}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    rows = [{"prompt": f"add {n} and {n}", "completion": f"it is {2 * n}"} for n in range(12)]
    rows.append({"prompt": "long " * 30, "completion": "no"})
    (tmp_path / "shop.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def silent(line: str) -> None:
    pass


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def test_before_anything_has_run(folder: Path) -> None:
    before = files(folder)
    result = plan(load_recipe("recipe.yaml"), log=silent)
    stages = result["stages"]
    assert list(stages) == ["student", "sft", "stories", "more"]
    hidden, inner, vocabulary = 8, 16, 64
    attention = 2 * hidden * hidden + 2 * hidden * hidden // 2
    per_layer = attention + 3 * hidden * inner + 2 * hidden
    assert stages["student"]["models"]["result"]["parameters"] == per_layer + hidden + 2 * vocabulary * hidden
    assert stages["sft"]["models"]["model"]["parameters"] == "known after stage student"
    assert stages["sft"]["data"] == {"shop": "known after stage student"}
    assert not any(stage["done"] for stage in stages.values())
    assert files(folder) == before


def test_after_the_stages_before_have_run(folder: Path) -> None:
    recipe = load_recipe("recipe.yaml")
    run(recipe, only="student", log=silent)
    before = files(folder)
    result = plan(recipe, log=silent)
    sft = result["stages"]["sft"]
    assert result["stages"]["student"]["done"]
    shop = sft["data"]["shop"]
    assert shop["rows"] + shop["holdout"] == 12
    assert shop["dropped"] == {"no target within 64 tokens": 1}
    assert sft["rows_per_epoch"] == shop["rows"]
    assert sft["steps_per_epoch"] == 3
    assert sft["epoch"]["shop"]["rows"] == shop["rows"]
    assert shop["sample"].count("⟦") == 1
    prompt, target = shop["sample"].split("⟦")
    assert prompt.startswith("<s>")
    assert "add " in prompt
    assert "it is " in target
    assert target.endswith("</s>⟧")
    more = result["stages"]["more"]
    assert more["data"]["stage:stories"] == "known after stage stories"
    assert more["data"]["shop"]["rows"] == 11
    assert more["rows_per_epoch"] == "known after stage stories"
    assert files(folder) == before

    text = render(result)
    assert text.startswith(f"tiny -> {folder / 'runs/tiny'}, seed 43\n\nstudent: init (done)\n")
    assert f"  an epoch: {shop['rows']} rows, 3 steps of 4\n" in text
    assert "dropped 1: no target within 64 tokens" in text


def test_a_stage_finished_with_another_recipe_is_not_done(folder: Path) -> None:
    run(load_recipe("recipe.yaml"), only="student", log=silent)
    before = files(folder)
    result = plan(load_recipe("recipe.yaml", ["seed=44"]), log=silent)
    student = result["stages"]["student"]
    assert not student["done"]
    assert student["changed"] == ["seed was 43, is 44"]
    assert result["stages"]["sft"]["models"]["model"]["parameters"] == "known after stage student"
    line = "student: init (finished with another recipe or other data; a run needs --redo student)"
    assert line in render(result).splitlines()
    assert files(folder) == before


def test_a_dataset_of_which_a_later_stage_writes_the_test_rows(folder: Path) -> None:
    text = RECIPE.replace("stages:\n", "  later: {path: shop.jsonl, test: 'stage:stories'}\nstages:\n")
    (folder / "recipe.yaml").write_text(text)
    recipe = load_recipe("recipe.yaml", ["stages.more.data=later"])
    run(recipe, only="student", log=silent)
    result = plan(recipe, log=silent)
    assert result["stages"]["sft"]["data"]["shop"]["rows"] == 10
    assert result["stages"]["more"]["data"] == {"later": "known after stage stories"}


def test_the_command_line_prints_one_json_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "recipe.yaml", "--json", "seed=9"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 9


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.shop.path=shop.json", "'shop.json' does not exist"),
        ("stages.sft.model=./nothing", "'./nothing' does not exist"),
        ("stages.sft.training.learning_rat=1", "learning_rat: is not a key of transformers.TrainingArguments"),
        ("stages.student.config.hidden_sizes=3", "hidden_sizes: is not a key of the llama config"),
    ],
)
def test_wrong_input(override: str, sentence: str, folder: Path) -> None:
    recipe = load_recipe("recipe.yaml", [override])
    with pytest.raises(InputError) as caught:
        plan(recipe, log=silent)
    assert sentence in str(caught.value)
    assert not (folder / "runs").exists()


def test_adapters_are_named_and_an_unknown_vocabulary_is_not_guessed(folder: Path) -> None:
    config = "config: {model_type: llama, hidden_size: 8, intermediate_size: 16, num_attention_heads: 2}"
    (folder / "two.yaml").write_text(
        "name: two\n"
        "data: {shop: {path: shop.jsonl, allow_drops: true}}\n"
        "stages:\n"
        f"  a: {{kind: init, {config}, tokenizer: {{train_on: shop, vocab_size: 50}}}}\n"
        f"  b: {{kind: init, {config}, tokenizer: stage:a}}\n"
        "  lora: {kind: sft, model: stage:a, data: shop, lora: {r: 2}}\n"
        "  half: {kind: merge, models: [stage:a, {path: stage:a, adapter: stage:lora}], alpha: 0.5}\n"
    )
    result = plan(load_recipe("two.yaml"), log=silent)
    assert result["stages"]["b"]["models"]["result"]["parameters"] == "known after stage a"
    text = render(result)
    assert "  result: known after stage a" in text
    assert "  models.0: stage:a, known after stage a\n  models.1: stage:a with stage:lora, known after" in text


def test_a_wrong_key_is_said_before_anything_heavy_is_imported(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.replace("rows_per_step", "rows_per_stpe"))
    script = "import sys; from preceptor.cli import main; print(main(['plan', 'recipe.yaml']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert "rows_per_stpe is not a key that exists here" in done.stderr
