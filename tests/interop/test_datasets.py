"""DistillationTrainer on rows as `datasets` and TRL have them: the rows of a recipe, and its training bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from interop import shop
from preceptor import Attention, Collator, DistillationTrainer, Logits, ModelTeacher, NextToken, load_rows
from preceptor.data.chat import EncodedRow
from preceptor.recipe import parse_recipe
from preceptor.stages.context import StageContext
from preceptor.stages.train import execute


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with dropout and a teacher, `s` and `t`."""
    folder = tmp_path_factory.mktemp("models")
    shop.write(folder / "s", seed=1, attention_dropout=0.2)
    shop.write(folder / "t", seed=2)
    return folder


def plain(rows: list[EncodedRow]) -> list[tuple[list[int], list[bool]]]:
    return [(row.input_ids.tolist(), row.is_target.tolist()) for row in rows]


def trained_rows(trainer: DistillationTrainer) -> list[EncodedRow]:
    return sorted(
        (row for row in trainer.train_dataset if row.target_count), key=lambda row: int(row.origin.split()[-1])
    )


def trainer(folder: Path, scratch: Path, rows: Any, **changes: Any) -> DistillationTrainer:
    settings = {"teacher": str(folder / "t"), **changes}
    return DistillationTrainer(
        settings.pop("model", str(folder / "s")), settings.pop("args", shop.arguments(scratch)),
        train_dataset=rows, **settings,
    )  # fmt: skip


# --- rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", shop.FORMS)
@pytest.mark.parametrize("kind", [Dataset.from_list, list])
def test_rows_are_read_as_a_recipe_reads_them(form: str, kind: Any, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in shop.FORMS[form]))
    limit = {"text": 12, "instruction/input/output": 57}.get(form, 46)
    expected = load_rows(str(path), AutoTokenizer.from_pretrained(folder / "s"), max_length=limit)
    made = trainer(folder, tmp_path, kind(shop.FORMS[form]), max_length=limit)
    assert plain(trained_rows(made)) == plain(expected)
    assert len(expected) == len(shop.FORMS[form])
    assert limit in {len(row) for row in expected}  # some are cut


def test_two_texts_are_one_text_of_which_the_completion_is_learned(folder: Path, tmp_path: Path) -> None:
    """TRL's standard form has no chat template."""
    rows = [{"prompt": "tea ", "completion": "costs 5"}, {"prompt": "egg", "completion": "</s>"}]
    words = AutoTokenizer.from_pretrained(folder / "s")
    made = trained_rows(trainer(folder, tmp_path, rows))
    assert [words.decode(row.input_ids) for row in made] == ["<s>tea costs 5</s>", "<s>egg</s>"]
    assert [words.decode(row.input_ids[row.is_target]) for row in made] == ["costs 5</s>", "</s>"]
    made = trained_rows(trainer(folder, tmp_path, rows, targets="all"))
    assert [words.decode(row.input_ids[row.is_target]) for row in made] == ["tea costs 5</s>", "egg</s>"]


def test_token_ids_with_labels_or_masks(folder: Path, tmp_path: Path) -> None:
    ids = [1, 8, 9, 10, 11, 2]
    rows = [{"input_ids": ids, "labels": [-100, -100, -100, 10, -100, 2]}]
    (row,) = trained_rows(trainer(folder, tmp_path, Dataset.from_list(rows)))
    assert plain([row]) == [(ids, [False, False, False, True, False, True])]
    masks = {"completion_mask": [0, 0, 1, 1, 1, 1], "assistant_masks": [1, 1, 1, 0, 1, 0]}
    (row,) = trained_rows(trainer(folder, tmp_path, [{"input_ids": ids, **masks}]))
    assert row.is_target.tolist() == [False, False, True, False, True, False]
    (row,) = trained_rows(trainer(folder, tmp_path, [{"input_ids": ids}], max_length=4))
    assert plain([row]) == [(ids[:4], [False, True, True, True])]


def test_a_formatting_function(folder: Path, tmp_path: Path) -> None:
    rows = [{"asked": "tea", "said": "5"}, {"asked": "egg", "said": "7"}]
    made = trainer(folder, tmp_path, rows, formatting_func=lambda row: f"{row['asked']} costs {row['said']}")
    words = AutoTokenizer.from_pretrained(folder / "s")
    assert [words.decode(row.input_ids) for row in trained_rows(made)] == ["<s>tea costs 5</s>", "<s>egg costs 7</s>"]
    assert all(row.is_target[1:].all() for row in trained_rows(made))


def test_rows_that_lose_their_answers_are_counted(folder: Path, tmp_path: Path, caplog: Any) -> None:
    rows = [*shop.messages(2), {"messages": [shop.turn("user", "tea " * 20), shop.turn("assistant", "5")]}]
    made = trainer(folder, tmp_path, rows, max_length=60)
    assert len(trained_rows(made)) == 2
    assert "train_dataset: 1 of 3 rows dropped: 1 no target within 60 tokens" in caplog.messages


def test_a_student_without_a_template_takes_its_teachers(folder: Path, tmp_path: Path, caplog: Any) -> None:
    bare = shop.write(tmp_path / "bare", seed=1, template=None)
    made = trainer(folder, tmp_path, shop.messages(), model=bare)
    assert made.processing_class.chat_template == shop.TEMPLATE
    assert plain(trained_rows(made)) == plain(trained_rows(trainer(folder, tmp_path, shop.messages())))
    taught = AutoModelForCausalLM.from_pretrained(folder / "t")
    made = trainer(folder, tmp_path, shop.messages(), model=bare, teacher=taught)
    assert made.processing_class.chat_template not in (None, shop.TEMPLATE)
    assert caplog.messages[0] == "the tokenizer has no chat template; the teacher's is used and saved with it"
    assert "train_dataset: the tokenizer has no chat template; preceptor's default is used" in caplog.messages[-1]


# --- the training -----------------------------------------------------------------------------------------------

TRAINING = {"per_device_train_batch_size": 2, "num_train_epochs": 2, "learning_rate": 0.01, "logging_steps": 1,
            "save_strategy": "no", "use_cpu": True}  # fmt: skip


def stage(folder: Path, scratch: Path, **changes: Any) -> Path:
    """The folder of a `distill` stage of a recipe on the same rows, whose dataset is named as the trainer's route."""
    path = scratch / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in shop.messages()))
    spec = {"kind": "distill", "student": str(folder / "s"), "teacher": str(folder / "t"), "data": "default",
            "rows_per_step": 4, "max_length": 64, "training": TRAINING, "objective": [{"kind": "logits"}],
            **changes}  # fmt: skip
    raw = {"name": "r", "data": {"default": {"path": str(path)}}, "stages": {"kd": spec}}
    recipe = parse_recipe({**raw, "runs_dir": str(scratch / "runs")}, folder=scratch)
    directory = scratch / "runs/r/kd"
    directory.mkdir(parents=True)
    execute(recipe.stages["kd"], StageContext(recipe, "kd", directory, 5, print))
    return directory


def losses(lines: Any) -> list[float]:
    return [line["loss"] for line in lines if "loss" in line]


def test_the_training_is_that_of_a_recipe(folder: Path, tmp_path: Path) -> None:
    """A path, a dataset and TrainingArguments: the same weights, losses and model files as a `distill` stage's."""
    directory = stage(folder, tmp_path)
    made = trainer(folder, tmp_path, Dataset.from_list(shop.messages()), max_length=64)
    made.train()
    written = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert losses(made.state.log_history) == losses(written)
    assert len(losses(written)) == 6
    made.save_model(str(tmp_path / "mine"))
    mine, theirs = (load_file(at / "model.safetensors") for at in (tmp_path / "mine", directory / "model"))
    before = load_file(folder / "s" / "model.safetensors")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert any(not torch.equal(mine[name], before[name]) for name in mine)
    names = {file.name for file in (tmp_path / "mine").iterdir()}
    # What a stage adds is its card and its manifest.
    assert names == {file.name for file in (directory / "model").iterdir()} - {"README.md", "manifest.json"}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        of_mine, of_theirs = (json.loads((at / name).read_text()) for at in (tmp_path / "mine", directory / "model"))
        for each in (of_mine, of_theirs):
            # Trainer writes the tokenizer's own padding token into the config; of transformers 5.17 also [2] for 2.
            each["pad_token_id"] = 0
            if isinstance(each.get("eos_token_id"), list):
                (each["eos_token_id"],) = each["eos_token_id"]
        assert of_mine == of_theirs, name
    assert (tmp_path / "mine/chat_template.jinja").read_text() == shop.TEMPLATE


def test_a_peft_config_gives_the_adapter_of_a_recipe(folder: Path, tmp_path: Path) -> None:
    objective = [{"kind": "logits"}, {"kind": "next_token", "weight": 0.5}, {"kind": "attention"}]
    directory = stage(folder, tmp_path, lora={"r": 2, "dropout": 0.1}, objective=objective)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, lora_dropout=0.1, target_modules="all-linear")
    terms = [Logits(), NextToken(0.5), Attention()]
    made = trainer(folder, tmp_path, shop.messages(), peft_config=config, max_length=64, objective=terms)
    assert len(made.given.calibration) == min(Attention().calibration_rows, 10)  # the first rows, as a stage takes them
    made.train()
    made.save_model(str(tmp_path / "mine"))
    mine, theirs = (load_file(at / "adapter_model.safetensors") for at in (tmp_path / "mine", directory / "adapter"))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert any(value.abs().max() > 0 for name, value in mine.items() if "lora_B" in name)
    assert config.target_modules == "all-linear"  # the user's own is as it was


def test_it_resumes_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    args = {"save_strategy": "steps", "save_steps": 4}
    whole = trainer(folder, tmp_path, shop.messages(), args=shop.arguments(tmp_path, **args))
    whole.train()
    resumed = trainer(folder, tmp_path, shop.messages())
    resumed.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-4"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    assert losses(resumed.state.log_history) == losses(whole.state.log_history)


def test_several_datasets_are_measured_each(folder: Path, tmp_path: Path) -> None:
    args = shop.arguments(tmp_path, eval_strategy="steps", eval_steps=3, metric_for_best_model="eval_sold_loss")
    held_out = {"sold": Dataset.from_list(shop.messages(3)), "told": shop.FORMS["text"][:4]}
    made = trainer(folder, tmp_path, shop.messages(), args=args, eval_dataset=held_out)
    made.train()
    found = [line for line in made.state.log_history if any(key.startswith("eval_") for key in line)]
    assert [(line["step"], next(iter(line))) for line in found] == [
        (3, "eval_sold_loss"), (3, "eval_told_loss"), (6, "eval_sold_loss"), (6, "eval_told_loss"),
    ]  # fmt: skip
    both = made.evaluate()
    for name, rows in held_out.items():
        alone = made.evaluate(rows, metric_key_prefix=f"eval_{name}")
        assert {key: value for key, value in both.items() if name in key} == {
            k: v for k, v in alone.items() if name in k
        }
        encoded = made.measure(made.given.rows(rows)).totals()["logits"]
        assert alone[f"eval_{name}_loss"] == alone[f"eval_{name}_logits"] == encoded
    assert both["eval_sold_loss"] != both["eval_told_loss"]
    assert made.state.best_metric == min(line["eval_sold_loss"] for line in found if "eval_sold_loss" in line)


def test_objects_do_as_well_as_paths(folder: Path, tmp_path: Path) -> None:
    by_path = trainer(folder, tmp_path, shop.messages(), args=shop.arguments(tmp_path, max_steps=2))
    by_path.train()
    for wrap in (ModelTeacher, lambda model: model):
        student = AutoModelForCausalLM.from_pretrained(folder / "s")
        taught = wrap(AutoModelForCausalLM.from_pretrained(folder / "t"))
        words = AutoTokenizer.from_pretrained(folder / "s")
        given = {"model": student, "teacher": taught, "processing_class": words}
        made = trainer(folder, tmp_path, shop.messages(), args=shop.arguments(tmp_path, max_steps=2), **given)
        made.train()
        assert losses(made.state.log_history) == losses(by_path.state.log_history)


def test_rows_of_dicts_can_be_packed(folder: Path, tmp_path: Path) -> None:
    """A step's rows are the same; without dropout so is its loss."""
    student = shop.write(tmp_path / "still", seed=1)
    packing = Collator(3, route_names=("default",), packing=True, max_length=128)
    found = []
    for collator in (None, packing):
        args = shop.arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=1, max_steps=2)
        made = trainer(
            folder, tmp_path, shop.messages(), model=student, args=args, data_collator=collator, max_length=128
        )
        made.train()
        found.append(losses(made.state.log_history))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert made.batch_of(list(made.train_dataset)[:4]).input_ids.shape[0] < 4


# --- what is saved ----------------------------------------------------------------------------------------------


def test_the_end_token_goes_on_learning_where_it_pads(folder: Path, tmp_path: Path) -> None:
    """TRL users pad with it; Trainer would write it into the config, and its embedding would learn no more."""
    words = AutoTokenizer.from_pretrained(folder / "s")
    words.pad_token = words.eos_token
    made = trainer(folder, tmp_path, shop.messages(), processing_class=words)
    made.train()
    made.save_model(str(tmp_path / "mine"))
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "mine" / name).read_text()).get("pad_token_id") is None, name
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "mine")
    assert again.get_input_embeddings().padding_idx is None


def test_what_is_pushed_to_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(folder, tmp_path, shop.messages(), args=shop.arguments(tmp_path, save_strategy="epoch", max_steps=3))
    made.train()
    pushed: dict[str, Any] = {}

    class Api:
        def upload_folder(self, **given: Any) -> str:
            pushed.update(given)
            return "pushed"

    monkeypatch.setattr("transformers.trainer.hf_api", Api)
    made.hub_model_id = "me/student"
    assert made.push_to_hub() == "pushed"
    root = Path(pushed["folder_path"])
    assert pushed["ignore_patterns"] == ["_*", "checkpoint-*"]
    seen = {file.name for file in root.iterdir() if not file.name.startswith("checkpoint-")}
    assert seen == {"README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
                    "tokenizer.json", "tokenizer_config.json"}  # fmt: skip
