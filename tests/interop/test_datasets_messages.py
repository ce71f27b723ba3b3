"""What DistillationTrainer says of rows, models and settings that it cannot use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, DataCollatorForLanguageModeling

from interop import shop
from preceptor import DistillationTrainer, Logits, NextToken, Objective
from preceptor.errors import InputError

ASKED, SAID = shop.turn("user", "tea?"), shop.turn("assistant", "5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    shop.write(folder / "s", seed=1)
    shop.write(folder / "t", seed=2)
    return folder


def refused(folder: Path, scratch: Path, **given: Any) -> str:
    settings: dict[str, Any] = {
        "model": str(folder / "s"), "args": shop.arguments(scratch), "train_dataset": shop.messages(),
        "teacher": str(folder / "t"), **given,
    }  # fmt: skip
    with pytest.raises(InputError) as found:
        DistillationTrainer(settings.pop("model"), settings.pop("args"), **settings)
    assert not (scratch / "out").exists()
    return str(found.value)


def many(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [*shop.messages(3), row]


IDS = "[1, 5, 6]"
ROWS: dict[str, tuple[Any, str]] = {
    "nothing": ([], "train_dataset: has no rows; give at least one"),
    "splits": (
        DatasetDict({"train": Dataset.from_list(shop.messages()), "test": Dataset.from_list(shop.messages())}),
        "train_dataset: is a DatasetDict of train or test; give one of them, for example train_dataset=data['train']",
    ),
    "path": (
        "rows.jsonl",
        "train_dataset: is the path 'rows.jsonl'; give `preceptor.load_rows(path, tokenizer, ...)` of it",
    ),
    "stream": (
        Dataset.from_list(shop.messages()).to_iterable_dataset(),
        "train_dataset: is a stream, whose rows cannot be counted or drawn in another order; load it without "
        "`streaming=True`, or take the rows you need of it into a list",
    ),
    "number": (7, "train_dataset: 7 is no dataset; give a datasets.Dataset or a list of dicts"),
    "texts": (
        ["tea"],
        'train_dataset: row 1 must be a dict such as {"messages": [...]}, not \'tea\'',
    ),
    "columns": (
        [{"chosen": "a", "rejected": "b"}],
        "train_dataset: row 1 has the columns `chosen`, `rejected`, which are none of the forms accepted: `messages`, "
        "`conversations`, `prompt/completion`, `instruction/input/output`, `text` or `input_ids`; rename them, for "
        "example with `dataset.rename_columns`",
    ),
    "two forms": (
        many({"text": "tea"}),
        "train_dataset: row 4 has the columns `text` where the rows began with `messages`; one dataset has one form",
    ),
    "tools": (
        many({"messages": [ASKED, SAID], "tools": [{"name": "price"}]}),
        "train_dataset: row 4 has the column `tools`, which is not read here and would change the row; remove that "
        "column",
    ),
    "role": (
        many({"messages": [ASKED, shop.turn("tool", "5")]}),
        "train_dataset: row 4: messages[1] has the role 'tool'; accepted are system, user or assistant",
    ),
    "content": (
        many({"messages": [ASKED, {"role": "assistant", "content": None}]}),
        "train_dataset: row 4: messages[1].content must be a string, not None",
    ),
    "no answers": (
        [{"messages": [ASKED]}] * 3 + shop.messages(2),
        "train_dataset: 3 of 5 rows would be dropped, more than half: 3 no assistant turn; mend the rows or "
        "`max_length`, or leave those rows out yourself",
    ),
    "none": (
        [{"messages": [ASKED]}] * 3,
        "train_dataset: none of its 3 rows can be trained on: 3 no assistant turn",
    ),
    "token ids": (
        [{"input_ids": "1 5 6"}],
        "train_dataset: row 1: input_ids must be a list of whole numbers, not '1 5 6'",
    ),
    "labels": (
        [{"input_ids": [1, 5, 6], "labels": [-100, 6, 2]}],
        "train_dataset: row 1: its labels are other tokens than its input_ids; labels here mark what is learned, each "
        "the token at its own place or -100",
    ),
    "mask": (
        [{"input_ids": [1, 5, 6], "completion_mask": [0, 1]}],
        "train_dataset: row 1: has 2 completion_mask for 3 input_ids; give one for each",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_rows(case: str, folder: Path, tmp_path: Path) -> None:
    rows, sentence = ROWS[case]
    assert refused(folder, tmp_path, train_dataset=rows) == sentence


def test_rows_to_measure_on_are_named(folder: Path, tmp_path: Path) -> None:
    said = refused(folder, tmp_path, eval_dataset={"sold": shop.messages(2), "told": [{"body": "tea"}]})
    assert said.startswith("eval_dataset['told']: row 1 has the columns `body`, which are none of the forms accepted")


def test_models_and_teachers(folder: Path, tmp_path: Path) -> None:
    shop.write(tmp_path / "other", seed=3)
    words = shop.sources.tokenizer_of("abc")
    words.save_pretrained(tmp_path / "other")
    student = AutoModelForCausalLM.from_pretrained(folder / "s")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "s"), LoraConfig(target_modules=["q_proj"]))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": 5}, "model: 5 is no model; give a transformers model, its folder or its Hub id"),
        (
            {"teacher": None},
            "teacher: is missing; give a model, its folder or Hub id, or an objective without a teacher: "
            "`objective=[preceptor.NextToken()]`",
        ),
        (
            {"teacher": {"a": 1}},
            "teacher: {'a': 1} is no teacher; give a model, its folder or Hub id, or a ModelTeacher, RoutedTeacher or "
            "StoredTeacher",
        ),
        (
            {"model": student, "teacher": student},
            "teacher: is the student itself, which would be frozen; load the model a second time",
        ),
        (
            {"peft_config": {"r": 8}},
            "peft_config: {'r': 8} is none of PEFT's configs; give a peft.LoraConfig",
        ),
        (
            {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)},
            "peft_config: is of kind PROMPT_TUNING, which adds prompt tokens; only adapters that change layers (LoRA "
            "and its relatives) are accepted",
        ),
        (
            {"model": adapted, "peft_config": LoraConfig(), "processing_class": shop.tokenizer()},
            "peft_config: the model has an adapter already; give one of the two",
        ),
        ({"processing_class": "gpt2"}, "processing_class: 'gpt2' is no tokenizer; give one of transformers'"),
        (
            {"data_collator": DataCollatorForLanguageModeling(shop.tokenizer(), mlm=False)},
            "marks no targets; leave it out, or give a preceptor.Collator",
        ),
        (
            {"objective": Objective([NextToken(), Logits()], route_names=("shop", "general"))},
            "train_dataset: its rows are on one route and the objective has 2 (shop, general); encode each dataset "
            "with preceptor.load_rows under the name of its route",
        ),
        (
            {"max_length": 1},
            "max_length: 1 tokens are not enough for one to predict another; give 2 or more",
        ),
        ({"targets": "answers"}, "targets: 'answers' is not known; accepted are assistant or all"),
        (
            {"teacher_model": "t"},
            "teacher_model: is not used by DistillationTrainer: it is called `teacher` here",
        ),
        (
            {"compute_metrics": print},
            "compute_metrics: is not used by DistillationTrainer: no logits are gathered; `evaluate()` gives every "
            "term of the objective",
        ),
        (
            {"args": shop.arguments(tmp_path, label_smoothing_factor=0.1)},
            "args.label_smoothing_factor: 0.1 would not be followed by DistillationTrainer, whose loss is the "
            "objective's; leave it out",
        ),
        (
            {"args": shop.arguments(tmp_path, train_sampling_strategy="sequential")},
            "args.train_sampling_strategy: 'sequential' would not be followed by DistillationTrainer, which draws rows "
            "in a new random order in each epoch; leave it out",
        ),
        (
            {"args": shop.arguments(tmp_path, push_to_hub=True)},
            "args.push_to_hub: checkpoints are not pushed while training; leave it out, and call "
            "`trainer.push_to_hub()` afterwards",
        ),
    ]  # fmt: skip
    for given, sentence in cases:
        said = refused(folder, tmp_path, **given)
        assert said == sentence or (said.endswith(sentence) and sentence.startswith("marks")), said
    assert "the student's tokenizer (" in refused(folder, tmp_path, teacher=str(tmp_path / "other"))


def test_what_a_trainer_cannot_do(folder: Path, tmp_path: Path) -> None:
    made = DistillationTrainer(
        str(folder / "s"), shop.arguments(tmp_path), train_dataset=shop.messages(), teacher=str(folder / "t")
    )
    with pytest.raises(InputError) as refused:
        made.predict(shop.messages())
    assert str(refused.value) == (
        "predict: no logits are gathered here; `evaluate()` gives every term of the objective, and "
        "`trainer.model.generate` answers"
    )
    with pytest.raises(InputError) as refused:
        made.evaluate()
    assert str(refused.value) == "evaluate: there are no rows to measure on; give `eval_dataset`"
