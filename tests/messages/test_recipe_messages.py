"""Wrong recipes: each gives its sentence, exit code 2, no traceback, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preceptor.cli import main
from preceptor.errors import InputError, InputErrors
from preceptor.recipe import load_recipe
from refusals import check_refusal

GOOD = """\
name: shop
data:
  general: {path: general.jsonl, holdout: 5}
  shop:
    path: shop.jsonl
stages:
  student:
    kind: init
    config: {model_type: llama, hidden_size: 32}
    tokenizer: {train_on: general, vocab_size: 300}
  kd:
    kind: distill
    student: stage:student
    teacher: teacher
    data: {general: 0.9, shop: 0.1}
    objective: [{kind: logits}, {kind: attention, weight: 0.5}]
    training: {learning_rate: 1e-4}
  stories:
    kind: generate
    model: stage:kd
    rows: 10
"""

# what is wrong: (text in GOOD, what replaces it, the sentence after "FILE:")
CASES: dict[str, tuple[str, str, str]] = {
    "unknown top-level key": (
        "name: shop",
        "name: shop\nsede: 1",
        "2: sede is not a key that exists here (did you mean 'seed'?); accepted are name, seed, runs_dir, data, "
        "stages or overlap",
    ),
    "unknown key of a stage": (
        "rows: 10",
        "rows: 10\n    top_pp: 0.9",
        "22: stages.stories.top_pp is not a key that exists here (did you mean 'top_p'?); accepted are kind, model, "
        "prompts, rows, max_new_tokens, temperature, top_p or batch_size",
    ),
    "unknown key of a term": (
        "{kind: logits}",
        "{kind: logits, temprature: 2}",
        "16: stages.kd.objective.0.temprature is not a key that exists here (did you mean 'temperature'?); accepted "
        "are weight, routes, kind, divergence, temperature, beta or alpha",
    ),
    "unknown key of a dataset": (
        "holdout: 5",
        "hold_out: 5",
        "3: data.general.hold_out is not a key that exists here (did you mean 'holdout'?); accepted are path, split, "
        "revision, format, columns, holdout, test, where, route, role, max_length, metric, targets or allow_drops",
    ),
    "missing key": (
        "    teacher: teacher\n",
        "",
        "11: stages.kd.teacher is missing; add it",
    ),
    "empty value": (
        "teacher: teacher",
        "teacher:",
        "14: stages.kd.teacher is empty; write a folder, a Hub id, `stage:NAME`, or a mapping with `path`",
    ),
    "unknown kind": (
        "kind: distill",
        "kind: distil",
        "12: stages.kd.kind is 'distil'; write init, compose, merge, sft, distill, generate, store or evaluate "
        "(did you mean 'distill'?)",
    ),
    "kind of a later version": (
        "kind: generate",
        "kind: align",
        "19: stages.stories.kind is 'align'; write init, compose, merge, sft, distill, generate, store or evaluate",
    ),
    "no kind": (
        "    kind: generate\n",
        "",
        "18: stages.stories has no kind; add kind: init, compose, merge, sft, distill, generate, store or evaluate",
    ),
    "unknown term": (
        "{kind: logits}",
        "{kind: logit}",
        "16: stages.kd.objective.0.kind is 'logit'; write next_token, logits, attention or router_balance "
        "(did you mean 'logits'?)",
    ),
    "text for a number": (
        "rows: 10",
        "rows: ten",
        "21: stages.stories.rows is 'ten'; write a whole number of at least 1",
    ),
    "true for a number": (
        "rows: 10",
        "rows: true",
        "21: stages.stories.rows is True; write a whole number of at least 1",
    ),
    "number out of range": (
        "rows: 10",
        "rows: 0",
        "21: stages.stories.rows is 0; write a whole number of at least 1",
    ),
    "number that is not finite": (
        "weight: 0.5",
        "weight: .nan",
        "16: stages.kd.objective.1.weight is nan; write a number of at least 0",
    ),
    "yes for a boolean": (
        "    data: {general",
        "    packing: yes\n    data: {general",
        "15: stages.kd.packing is 'yes'; write true or false",
    ),
    "unknown choice": (
        "path: shop.jsonl",
        "path: shop.jsonl\n    format: jsonlines",
        "6: data.shop.format is 'jsonlines'; write jsonl, json, csv, parquet, text or hub (did you mean 'jsonl'?)",
    ),
    "unknown divergence": (
        "{kind: logits}",
        "{kind: logits, divergence: kl}",
        "16: stages.kd.objective.0.divergence is 'kl'; write forward_kl, reverse_kl, jsd or skew_kl",
    ),
    "layer map": (
        "weight: 0.5",
        "layers: [[0, 1], [1]]",
        "16: stages.kd.objective.1.layers is [[0, 1], [1]]; write auto, uniform, last, assign, or a list of "
        "[student layer, teacher layer] pairs counted from 0",
    ),
    "shares that do not sum to 1": (
        "general: 0.9",
        "general: 0.8",
        "15: stages.kd.data is wrong: the shares sum to 0.9; change them so that they sum to 1",
    ),
    "share of nothing": (
        "general: 0.9, shop: 0.1",
        "general: 1.0, shop: 0",
        "15: stages.kd.data is wrong: the share of shop is 0; write a number above 0 and at most 1",
    ),
    "unknown dataset": (
        "shop: 0.1",
        "shpo: 0.1",
        "15: stages.kd.data names 'shpo', which is no dataset (did you mean 'shop'?); there is general, shop",
    ),
    "unknown stage": (
        "student: stage:student",
        "student: stage:studnet",
        "13: stages.kd.student is 'stage:studnet', but 'studnet' is no stage (did you mean 'student'?); "
        "there is student, kd, stories",
    ),
    "a stage that reads itself": (
        "student: stage:student",
        "student: stage:kd",
        "13: stages.kd.student is 'stage:kd': the stage would read its own result; name an earlier stage",
    ),
    "a circle of stages": (
        "path: shop.jsonl",
        "path: stage:stories",
        "15: stages.kd.data is 'shop', which is 'stage:stories', but stories comes after kd, and a stage reads earlier "
        "ones only (so that no circle can arise); move stories above kd",
    ),
    "rows where a model is wanted": (
        "    rows: 10\n",
        "    rows: 10\n  more: {kind: generate, model: stage:stories, rows: 1}\n",
        "22: stages.more.model is 'stage:stories', of kind generate, which gives rows; name a stage that gives a model",
    ),
    "a model where rows are wanted": (
        "data: {general: 0.9, shop: 0.1}",
        "data: stage:student",
        "15: stages.kd.data is 'stage:student', of kind init, which gives a model; name a stage that gives rows",
    ),
    "a route that is not trained on": (
        "{kind: logits}",
        "{kind: logits, routes: [shops]}",
        "16: stages.kd.objective.0.routes names 'shops', which is no route of this stage (did you mean 'shop'?); "
        "there is general, shop",
    ),
    "a training key that we own": (
        "learning_rate: 1e-4",
        "gradient_accumulation_steps: 4",
        "17: stages.kd.training.gradient_accumulation_steps is a key preceptor sets itself; use `rows_per_step` of the "
        "stage, from which it follows",
    ),
    "a number of skipped steps below none": (
        "    training:",
        "    max_nonfinite_steps: -1\n    training:",
        "17: stages.kd.max_nonfinite_steps is -1; write a whole number of at least 0",
    ),
    "steps that are not whole": (
        "learning_rate: 1e-4",
        "per_device_train_batch_size: 3",
        "11: stages.kd is wrong: rows_per_step is 16, which is not a multiple of "
        "training.per_device_train_batch_size = 3; change one of them",
    ),
    "steps that are not whole batches of the default size": (
        "    training:",
        "    rows_per_step: 12\n    training:",
        "11: stages.kd is wrong: rows_per_step is 12, which is not a multiple of "
        "training.per_device_train_batch_size = 8 (its default); change one of them",
    ),
    "batches found on the way": (
        "learning_rate: 1e-4",
        "auto_find_batch_size: true",
        "17: stages.kd.training.auto_find_batch_size is a key preceptor sets itself; use "
        "`per_device_train_batch_size`, which has to divide `rows_per_step`",
    ),
    "checkpoints that cannot be resumed from": (
        "learning_rate: 1e-4",
        "save_only_model: true",
        "17: stages.kd.training.save_only_model is a key preceptor sets itself; use `save_total_limit`, since a "
        "stopped run goes on from whole checkpoints only",
    ),
    "rows that a resumed training begins anew": (
        "learning_rate: 1e-4",
        "ignore_data_skip: true",
        "17: stages.kd.training.ignore_data_skip is a key preceptor sets itself; leave it out, since a stopped run "
        "goes on at the row where it was",
    ),
    "transformers' own way with a signal": (
        "learning_rate: 1e-4",
        "enable_jit_checkpoint: true",
        "17: stages.kd.training.enable_jit_checkpoint is a key preceptor sets itself; leave it out, since the first "
        "SIGTERM or Ctrl-C writes a checkpoint already",
    ),
    "another order of rows": (
        "learning_rate: 1e-4",
        "train_sampling_strategy: group_by_length",
        "17: stages.kd.training.train_sampling_strategy is a key preceptor sets itself; use `data` and `by` of the "
        "stage, from which the order of its rows follows",
    ),
    "evaluation without rows to evaluate on": (
        "data: {general: 0.9, shop: 0.1}\n    objective: [{kind: logits}, {kind: attention, weight: 0.5}]\n"
        "    training: {learning_rate: 1e-4}",
        "data: shop\n    training: {eval_strategy: steps}",
        "16: stages.kd.training.eval_strategy is 'steps', but no dataset of the stage keeps rows to evaluate on; give "
        "one of shop a `holdout`, or write eval_strategy: no",
    ),
    "a seed beyond what numpy takes": (
        "name: shop",
        "name: shop\nseed: 4294967296",
        "2: seed is 4294967296; write a whole number from 0 to 4294967295",
    ),
    "a seed below 0": (
        "name: shop",
        "name: shop\nseed: -1",
        "2: seed is -1; write a whole number from 0 to 4294967295",
    ),
    "two attention terms": (
        "{kind: logits}",
        "{kind: attention, routes: [shop]}",
        "16: stages.kd.objective has two attention terms; keep one of them",
    ),
    "two terms of one kind for all rows": (
        "{kind: logits}",
        "{kind: logits}, {kind: logits, divergence: jsd}",
        "16: stages.kd.objective has two logits terms for the same rows; keep one of them, or give them different "
        "`routes`",
    ),
    "two terms of one kind for the same routes": (
        "{kind: logits}",
        "{kind: next_token, routes: [shop, general]}, {kind: next_token, routes: [general, shop]}",
        "16: stages.kd.objective has two next_token terms for the same rows; keep one of them, or give them different "
        "`routes`",
    ),
    "a student layer with two teacher layers": (
        "weight: 0.5",
        "layers: [[0, 1], [0, 2]]",
        "16: stages.kd.objective.1.layers names student layer 0 twice; give each student layer one teacher layer",
    ),
    "lambda by its name in Python": (
        "objective: [{kind: logits}, {kind: attention, weight: 0.5}]",
        "lambda_: 0.5",
        "16: stages.kd.lambda_ is not a key that exists here (did you mean 'lambda'?); accepted are data, by, rows, "
        "rows_per_step, max_length, targets, packing, objective, lora, training, max_nonfinite_steps, kind, student, "
        "teacher or lambda",
    ),
    "lambda beside an objective": (
        "    training:",
        "    lambda: 0.5\n    training:",
        "11: stages.kd has both `lambda` and `objective`; keep one of them",
    ),
    "lambda out of range": (
        "objective: [{kind: logits}, {kind: attention, weight: 0.5}]",
        "lambda: 1.5",
        "16: stages.kd.lambda is 1.5; write a number from 0 to 1",
    ),
    "an objective without weight": (
        "[{kind: logits}, {kind: attention, weight: 0.5}]",
        "[{kind: logits, weight: 0}]",
        "16: stages.kd.objective has no term with a weight above 0; list at least one, such as [{kind: logits}]",
    ),
    "a teacher's term without a teacher": (
        "    kind: distill\n    student: stage:student\n    teacher: teacher\n",
        "    kind: sft\n    model: stage:student\n",
        "15: stages.kd.objective is wrong: an sft stage has no teacher, so its objective "
        "holds next_token and router_balance only, not "
        "logits or attention; use kind: distill for the others",
    ),
    "a quantised student": (
        "student: stage:student",
        "student: {path: stage:student, quantization: {quant_method: bitsandbytes}}",
        "13: stages.kd.student.quantization needs `lora`: quantised weights cannot be trained themselves; add "
        "lora: {r: 16} to the stage, or remove quantization",
    ),
    "a variable that is not set": (
        "path: general.jsonl",
        "path: $NO_SUCH_FOLDER/general.jsonl",
        "3: data.general.path is wrong: '$NO_SUCH_FOLDER/general.jsonl' uses the environment variable "
        "NO_SUCH_FOLDER, which is not set; export NO_SUCH_FOLDER first",
    ),
    "a name that is a path": (
        "name: shop",
        "name: ../shop",
        "1: name is '../shop'; write a name of letters, digits, '_', '-' and '.', not beginning with '.' or '-', at "
        "most 100 long",
    ),
    "a stage name that is a path": (
        "  stories:",
        "  a/b:",
        "18: stages.a/b is not a usable name; write a name of letters, digits, '_', '-' and '.', not beginning with "
        "'.' or '-', at most 100 long",
    ),
    "an overlap with an unknown dataset": (
        "name: shop",
        "name: shop\noverlap: {drop_from: generl}",
        "2: overlap.drop_from names 'generl', which is no dataset (did you mean 'general'?); there is general, shop",
    ),
    "no config to start from": (
        "config: {model_type: llama, hidden_size: 32}",
        "config: {hidden_size: 32}",
        "9: stages.student.config is {'hidden_size': 32}; write a mapping of transformers config keys with at least "
        "`model_type: NAME`",
    ),
    "a key given twice": (
        "    rows: 10",
        "    rows: 10\n    rows: 20",
        "22: the key 'rows' is given twice; remove one of them",
    ),
    "a tab": (
        "    rows: 10",
        "\trows: 10",
        "21: is not YAML: found character '\\t' that cannot start any token at column 1; mend the line "
        "or the one above it",
    ),
    "a tag": (
        "rows: 10",
        "rows: !!python/object/apply:os.getcwd []",
        "21: has the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd'; remove the tag",
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, so that anything written is seen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    return tmp_path


def test_the_recipe_that_the_cases_break_is_right(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(GOOD)
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.stage_reads("kd") == ["student"]
    assert recipe.stage_reads("stories") == ["kd"]


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_exit_code_2_and_nothing_written(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refusal(GOOD, CASES[case], folder, capsys)


def test_every_error_at_once(folder: Path) -> None:
    text = GOOD.replace("rows: 10", "rows: 0").replace("shop: 0.1", "shpo: 0.1").replace("weight: 0.5", "weight: -1")
    (folder / "recipe.yaml").write_text(text.replace("name: shop", "nam: shop").replace("holdout: 5", "role: x"))
    with pytest.raises(InputErrors) as caught:
        load_recipe("recipe.yaml")
    paths = [error.split(" ")[1] for error in caught.value.errors]
    assert sorted(paths) == [
        "data.general.role",
        "nam",
        "name",
        "stages.kd.data",
        "stages.kd.objective.1.weight",
        "stages.stories.rows",
    ]


def test_references_are_checked_beside_a_typing_mistake(folder: Path) -> None:
    """An unknown dataset is reported although another key of the same stage is misspelt."""
    (folder / "recipe.yaml").write_text(GOOD.replace("shop: 0.1", "shpo: 0.1").replace("    training:", "    trainin:"))
    with pytest.raises(InputErrors) as caught:
        load_recipe("recipe.yaml")
    assert [error.split(" ")[1] for error in caught.value.errors] == ["stages.kd.trainin", "stages.kd.data"]


def test_json_holds_the_errors_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipe.yaml").write_text(GOOD.replace("rows: 10", "rows: 0"))
    assert main(["run", "recipe.yaml", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {
        "exit_code": 2,
        "errors": ["recipe.yaml:21: stages.stories.rows is 0; write a whole number of at least 1"],
    }


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", ": is empty; a recipe begins with name:, data: and stages:"),
    "a list": (b"- a\n- b\n", ": holds list and not keys with values; a recipe begins with name:, data: and stages:"),
    "not UTF-8": (b"name: caf\xe9\n", ": byte 9 is not UTF-8; save the file as UTF-8 text"),
    "a control character": (b"name: a\x00b\n", "save it as plain UTF-8 text"),
    "too large": (b"#" * ((1 << 20) + 1), ": has more than 1,048,576 bytes; a recipe has fewer"),
    "two documents": (
        b"name: a\n---\nname: b\n",
        ":2: is not YAML: expected a single document in the stream, but found another document at column 1",
    ),
    "an open bracket": (b"name: [a\nstages: 1\n", ":2: is not YAML: "),
    "too deep": (b"name: " + b"[" * 5000, ": is nested deeper than 64 levels"),
    "an alias that holds itself": (b"name: &a [*a]\n", "is nested deeper than 64 levels (or an alias holds itself)"),
    "an alias without an anchor": (b"name: *a\n", ":1: is not YAML: found undefined alias 'a' at column 7"),
    "a key that is no text": (b"name: a\n1: b\n", ":2: '1' is a key but not text; put it in quotes"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_recipes(case: str, folder: Path) -> None:
    content, sentence = FILES[case]
    (folder / "recipe.yaml").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_recipe("recipe.yaml")
    assert str(caught.value).startswith("recipe.yaml")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_that_unfold_to_a_billion_values_are_refused_at_once(folder: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (folder / "recipe.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"aliases unfold to more than 100,000 values; write them out"):
        load_recipe("recipe.yaml")


def test_no_file_and_a_folder(folder: Path) -> None:
    with pytest.raises(InputError, match=r"^no.yaml: there is no such file; give the path of a recipe \(YAML\)$"):
        load_recipe("no.yaml")
    with pytest.raises(InputError, match=r"is a folder; give the recipe file in it$"):
        load_recipe(folder)


OVERRIDES = {
    "seed": "override 'seed': is not KEY=VALUE; write it such as stages.kd.training.learning_rate=1e-5",
    "stages.kdd.rows=3": "override 'stages.kdd.rows=3': there is no 'kdd' in stages (did you mean 'kd'?); "
    "it has student, kd, stories",
    "stages.kd.objective.2.weight=1": "override 'stages.kd.objective.2.weight=1': stages.kd.objective has 2 items, so "
    "'2' is none of them; write a number from 0 to 1",
    "name.x=1": "override 'name.x=1': name is 'shop', which has no keys; set name itself",
    "stages.kd.rows_per_stp=8": "override 'stages.kd.rows_per_stp=8': stages.kd.rows_per_stp is not a key that exists "
    "here (did you mean 'rows_per_step'?); accepted are data, by, rows, rows_per_step, max_length, targets, "
    "packing, objective, lora, training, max_nonfinite_steps, kind, student, teacher or lambda",
    "stages.stories.rows=0": "override 'stages.stories.rows=0': stages.stories.rows is 0; write a whole number of at "
    "least 1",
    "stages.kd.data=[": "override 'stages.kd.data=[':1: is not YAML: ",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_wrong_overrides(override: str, folder: Path) -> None:
    (folder / "recipe.yaml").write_text(GOOD)
    with pytest.raises(InputErrors) as caught:
        load_recipe("recipe.yaml", [override])
    assert len(caught.value.errors) == 1
    assert caught.value.errors[0].startswith(OVERRIDES[override])


USAGE = {
    (): 0,
    ("--help",): 0,
    ("--version",): 0,
    ("run", "--help"): 0,
    ("rnu",): "error: preceptor: 'rnu' is no command (did you mean 'run'?); write "
    "demo, init, plan, run, evaluate, report, store or completion, and see preceptor --help\n",
    ("run",): "error: preceptor run: no recipe is given; write preceptor run RECIPE with the path of a YAML file, and "
    "see preceptor init for a first one\n",
    ("run", "recipe.yaml", "--onyl", "kd"): "error: preceptor run: --onyl is no option (did you mean '--only'?); see "
    "preceptor run --help\n",
    ("demo", "--seeds", "0"): "error: preceptor demo: --seeds is '0'; write a whole number of at least 1; see "
    "preceptor demo --help\n",
}


@pytest.mark.parametrize("arguments", USAGE)
def test_usage(arguments: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = USAGE[arguments]
    if expected == 0:
        assert main(arguments) == 0
        assert "preceptor" in capsys.readouterr().out
    else:
        assert main(arguments) == 2
        assert capsys.readouterr().err == expected
    assert list(folder.iterdir()) == []
