"""TRL beside us: its trainer goes on from our student, and one dataset gives both trainers the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from interop import shop
from preceptor import DistillationTrainer
from preceptor.errors import InputError

trl = pytest.importorskip("trl", reason="needs TRL: pip install '.[bench]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    shop.write(folder / "s", seed=1)
    shop.write(folder / "t", seed=2)
    return folder


def config(scratch: Path, **changes: Any) -> Any:
    """SFTConfig as its users write it; what it trains in by default is for GPUs."""
    settings: dict[str, Any] = {
        "output_dir": str(scratch / "out"), "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.01,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False,
    }  # fmt: skip
    return trl.SFTConfig(**{**settings, **changes})


def test_sft_trainer_goes_on_from_our_student(folder: Path, tmp_path: Path) -> None:
    """The same script but for the class and `teacher=`, and then the other way round."""
    rows = Dataset.from_list(shop.messages())
    ours = DistillationTrainer(str(folder / "s"), config(tmp_path), train_dataset=rows, teacher=str(folder / "t"))
    ours.train()
    ours.save_model(str(tmp_path / "student"))
    theirs = trl.SFTTrainer(str(tmp_path / "student"), config(tmp_path), train_dataset=rows)
    start = {name: value.clone() for name, value in theirs.model.state_dict().items()}
    assert all(torch.equal(value, start[name]) for name, value in ours.model.state_dict().items())
    theirs.train()
    assert theirs.state.global_step == 2
    assert any(not torch.equal(value, start[name]) for name, value in theirs.model.state_dict().items())


@pytest.mark.parametrize("form", ["messages", "prompt/completion", "text", "standard"])
def test_both_trainers_learn_the_same_tokens(form: str, folder: Path, tmp_path: Path) -> None:
    standard = [{"prompt": asked, "completion": f" {said}"} for asked, said in shop.pairs()]
    rows = Dataset.from_list(standard if form == "standard" else shop.FORMS[form])
    args = config(tmp_path, assistant_only_loss=form == "messages", max_length=46)
    theirs = trl.SFTTrainer(str(folder / "s"), args, train_dataset=rows).train_dataset
    ours = DistillationTrainer(str(folder / "s"), args, train_dataset=rows, teacher=str(folder / "t")).train_dataset
    mine = [(row.input_ids.tolist(), row.is_target.tolist()) for row in ours if row.target_count]
    expected = [
        (row["input_ids"], [False, *(label != -100 for label in row["labels"][1:])]) for row in theirs
    ]  # the first token is never predicted, whatever its label
    assert sorted(mine) == sorted(expected)
    assert len(mine) == len(rows)


def test_their_fields_are_followed(folder: Path, tmp_path: Path) -> None:
    rows = [{"body": said} for _, said in shop.pairs()]
    args = config(
        tmp_path, max_length=9, dataset_text_field="body", pad_to_multiple_of=16, dataset_num_proc=1,
        model_init_kwargs={"dtype": "float64"},
    )  # fmt: skip
    taught = DistillationTrainer(str(folder / "s"), args, train_dataset=rows, teacher=str(folder / "t"))
    assert {len(row) for row in taught.train_dataset} == {9}
    assert taught.model.dtype == torch.float64
    batch = taught.batch_of(list(taught.train_dataset)[:2])
    assert batch.input_ids.shape == (2, 16)


def test_all_of_a_completion_row(folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "tea ", "completion": "costs 5"}]
    args = config(tmp_path, completion_only_loss=False)
    made = DistillationTrainer(str(folder / "s"), args, train_dataset=rows, teacher=str(folder / "t"))
    row = made.train_dataset[0]
    assert row.is_target[1:].all()


REFUSED = {
    "packing": (
        {"packing": True},
        "args.packing: True would not be followed by DistillationTrainer; leave it out: give "
        "`data_collator=preceptor.Collator(..., packing=True, max_length=...)`, which packs the rows of a micro-batch",
    ),
    "loss": (
        {"loss_type": "dft"},
        "args.loss_type: 'dft' would not be followed by DistillationTrainer; leave it out",
    ),
    "router": (
        {"router_aux_loss_coef": 0.01},
        "args.router_aux_loss_coef: 0.01 would not be followed by DistillationTrainer; leave it out: add "
        "`preceptor.RouterBalance(weight)` to `objective`",
    ),
    "template": (
        {"chat_template_path": "chat.jinja"},
        "args.chat_template_path: 'chat.jinja' would not be followed by DistillationTrainer; leave it out: set "
        "`processing_class.chat_template`",
    ),
    "init": (
        {"model_init_kwargs": {"attn_implementation": "eager"}},
        "args.model_init_kwargs: 'attn_implementation' would not be followed by DistillationTrainer; accepted are "
        "revision, dtype, torch_dtype, device_map or trust_remote_code, or load the model yourself and give it as "
        "`model`",
    ),
    "completion": (
        {"completion_only_loss": True},
        "args.completion_only_loss: the rows of train_dataset are `messages` and have no completion; leave it out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_their_fields_that_would_do_nothing_are_refused(case: str, folder: Path, tmp_path: Path) -> None:
    changes, sentence = REFUSED[case]
    with pytest.raises(InputError) as refused:
        DistillationTrainer(
            str(folder / "s"), config(tmp_path, **changes), train_dataset=shop.messages(), teacher=str(folder / "t")
        )
    assert str(refused.value) == sentence


def test_the_config_of_their_own_distillation(folder: Path, tmp_path: Path) -> None:
    """Its completions are the student's own: only what both trainers have in common is taken."""
    args = trl.DistillationConfig(
        str(tmp_path / "out"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", beta=0.5
    )
    with pytest.raises(InputError) as refused:
        DistillationTrainer(str(folder / "s"), args, train_dataset=shop.messages(), teacher=str(folder / "t"))
    assert str(refused.value) == (
        "args.beta: 0.5 would not be followed by DistillationTrainer; leave it out: give "
        "`objective=[preceptor.Logits(divergence=...)]`"
    )
