"""A step whose loss or gradient is NaN or infinite is skipped, counted and told; too many in a row end the training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import toys
from invariant.trainers import Stop, StopAt, weights
from preceptor import Attention, Logits, ModelTeacher, NextToken, RoutedTeacher
from preceptor.errors import RunFailed
from preceptor.recipe import LoraSpec
from preceptor.stages.build import add_lora
from preceptor.trainer import DistillationTrainer
from preceptor.training.checkpoints import last_checkpoint
from reliability.faulty import POISON, BadGradient, made, rows, student
from same_results import log_lines

BAD = 5  # a row of the second of six steps, in its first micro-batch
ITS_STEP = range(4, 8)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "nonfinite.jsonl").read_text().splitlines()]


def same_training(one: DistillationTrainer, other: DistillationTrainer) -> None:
    """Weights, moments and schedule, to the bit."""
    theirs = weights(other.model)
    for name, value in weights(one.model).items():
        assert torch.equal(value.nan_to_num(7), theirs[name].nan_to_num(7)), name
    states = (one.optimizer.state_dict(), other.optimizer.state_dict())
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for index, state in states[0]["state"].items():
        for key, value in state.items():
            wanted = states[1]["state"][index][key]
            assert value is wanted is None or torch.equal(
                torch.as_tensor(value).nan_to_num(7), torch.as_tensor(wanted).nan_to_num(7)
            ), key
    assert one.lr_scheduler.state_dict() == other.lr_scheduler.state_dict()


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": "sgd", "optim_args": "momentum=0.9", "max_grad_norm": 0, "weight_decay": 0.1},
        {"optim": "sgd"},
        {"optim": "adamw_torch", "weight_decay": 0.1},
        {"optim": "sgd", "torch_compile": True, "torch_compile_backend": "eager"},
    ],
    ids=["momentum", "clipped", "adam", "compiled"],
)
def test_a_poisoned_step_is_as_one_without_targets(settings: dict[str, Any], tmp_path: Path) -> None:
    bad = made(tmp_path / "bad", rows(poisoned=[BAD]), **settings)
    bad.train()
    empty = made(tmp_path / "empty", rows(poisoned=[BAD], empty=ITS_STEP), **settings)
    empty.train()
    plain = made(tmp_path / "plain", rows(), **settings)
    plain.train()
    same_training(bad, empty)
    assert not torch.equal(bad.model.lm_head.weight, plain.model.lm_head.weight)
    counts = ("skipped_steps", "nonfinite_steps", "grad_norm")
    assert log_lines(tmp_path / "bad", *counts) == log_lines(tmp_path / "empty", *counts)
    assert [line["nonfinite_steps"] for line in log_lines(tmp_path / "bad") if "nonfinite_steps" in line] == [
        0,
        1,
        0,
        0,
        0,
        0,
    ]
    assert (bad.step_metrics.nonfinite_total, bad.step_metrics.skipped_total) == (1, 0)
    assert (empty.step_metrics.nonfinite_total, empty.step_metrics.skipped_total) == (0, 1)
    second = log_lines(tmp_path / "bad")[1]
    assert (second["loss"], second["targets"]) == (None, 0)
    assert "grad_norm" not in second


def test_the_rows_of_a_bad_loss_are_written_and_told(tmp_path: Path) -> None:
    said: list[str] = []
    data = rows(poisoned=[BAD])
    made(tmp_path, data, said=said).train()
    (line,) = lines(tmp_path)
    assert (line["step"], line["not_finite"], line["in_a_row"], line["teachers"]) == (2, "loss", 1, [])
    assert line["student"] == "model.embed_tokens.weight"
    (micro_batch,) = line["micro_batches"]
    assert (micro_batch["process"], micro_batch["micro_batch"], micro_batch["terms"]) == (0, 0, ["next_token"])
    assert [row["origin"] for row in micro_batch["rows"]] == ["rows.jsonl:5", "rows.jsonl:6"]
    row = micro_batch["rows"][1]
    assert (row["dataset"], row["row"], row["route"]) == ("a", BAD, "a")
    assert (row["tokens"], row["targets"]) == (len(data[BAD]), data[BAD].target_count)
    assert row["sha256"] == hashlib.sha256(data[BAD].input_ids.astype("<i4").tobytes()).hexdigest()
    assert said == [
        "step 2 is skipped: its loss is not finite (next_token; 2 rows of a; the student's own "
        "model.embed_tokens.weight is not finite), 1 in a row of at most 10; rows are listed in "
        f"{tmp_path / 'nonfinite.jsonl'}"
    ]


def test_packed_rows_are_told_apart(tmp_path: Path) -> None:
    made(tmp_path, rows(poisoned=[BAD]), packing=True, said=[]).train()
    (micro_batch,) = lines(tmp_path)[0]["micro_batches"]
    assert sorted(row["origin"] for row in micro_batch["rows"]) == ["rows.jsonl:5", "rows.jsonl:6"]


@pytest.mark.parametrize("max_grad_norm", [None, 0, 1.0])
def test_an_infinite_gradient_of_a_finite_loss(max_grad_norm: float | None, tmp_path: Path) -> None:
    said: list[str] = []
    bad = made(
        tmp_path / "bad", rows(), BadGradient(4), model=student(poison=0), said=said, max_grad_norm=max_grad_norm
    )
    bad.train()
    empty = made(tmp_path / "empty", rows(empty=range(8, 12)), model=student(poison=0), max_grad_norm=max_grad_norm)
    empty.train()
    same_training(bad, empty)
    (line,) = lines(tmp_path / "bad")
    assert (line["step"], line["not_finite"]) == (3, "gradient")
    origins = [[row["origin"] for row in each["rows"]] for each in line["micro_batches"]]
    assert origins == [["rows.jsonl:9", "rows.jsonl:10"], ["rows.jsonl:11", "rows.jsonl:12"]]
    assert [each["terms"] for each in line["micro_batches"]] == [[], []]
    assert said[0].startswith("step 3 is skipped: its gradient is not finite (4 rows of a), 1 in a row of at most 10;")


def test_an_infinite_loss_is_one_too(tmp_path: Path) -> None:
    """Gradients of the loss may be finite where it is not."""
    trainer = made(tmp_path, rows(), said=[])
    objective, calls = trainer.objective, iter(range(100))

    class Infinite:
        def __getattr__(self, name: str) -> Any:
            return getattr(objective, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            sums = objective(*args, **kwargs)
            if next(calls) == 3:
                object.__setattr__(sums, "loss", sums.loss + torch.inf)
            return sums

    trainer.objective = Infinite()  # type: ignore[assignment]
    trainer.train()
    (line,) = lines(tmp_path)
    assert (line["step"], line["not_finite"]) == (2, "loss")
    assert [each["micro_batch"] for each in line["micro_batches"]] == [1]


def test_too_many_in_a_row_end_the_training(tmp_path: Path) -> None:
    said: list[str] = []
    trainer = made(tmp_path, rows(poisoned=range(4, 24)), limit=2, said=said)
    with pytest.raises(RunFailed) as failed:
        trainer.train()
    assert str(failed.value) == (
        "the loss is not finite (next_token; 4 rows of a; the student's own model.embed_tokens.weight is not finite) "
        "at step 4 as at the 2 before it, and `max_nonfinite_steps` is 2; rows are listed in "
        f"{tmp_path / 'nonfinite.jsonl'}; look at these rows, or set `max_nonfinite_steps` higher to go on past them "
        "from the last checkpoint (other data or a lower `training.learning_rate` need --redo)"
    )
    assert [line["step"] for line in lines(tmp_path)] == [2, 3, 4]
    assert len(said) == 2


def test_none_is_skipped_at_a_limit_of_0(tmp_path: Path) -> None:
    trainer = made(tmp_path, rows(poisoned=[0]), limit=0)
    before = weights(trainer.model)
    with pytest.raises(RunFailed, match=r"at step 1, and `max_nonfinite_steps` is 0; rows"):
        trainer.train()
    after = weights(trainer.model)
    assert all(torch.equal(value.nan_to_num(7), after[name].nan_to_num(7)) for name, value in before.items())


def test_a_good_step_begins_the_count_anew(tmp_path: Path) -> None:
    trainer = made(tmp_path, rows(poisoned=[0, 8, 16]), limit=1, said=[])
    trainer.train()
    assert [line["in_a_row"] for line in lines(tmp_path)] == [1, 1, 1]
    assert trainer.step_metrics.nonfinite_total == 3


def test_a_resumed_training_goes_on_counting(tmp_path: Path) -> None:
    data = rows(poisoned=[4, 8, 12, 20])  # steps 2, 3, 4 and 6
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "logging_steps": 4, "said": []}
    whole = made(tmp_path / "whole", data, **settings)
    whole.train()
    with pytest.raises(Stop):
        made(tmp_path / "parts", data, StopAt(5), **settings).train()
    assert [line["step"] for line in lines(tmp_path / "parts")] == [2, 3, 4]
    resumed = made(tmp_path / "parts", data, **settings)
    resumed.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "parts/checkpoints")))
    same_training(resumed, whole)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert [line["in_a_row"] for line in lines(tmp_path / "whole")] == [1, 2, 3, 1]
    assert log_lines(tmp_path / "parts") == log_lines(tmp_path / "whole")
    assert resumed.step_metrics.nonfinite_total == whole.step_metrics.nonfinite_total == 4


def test_a_new_training_begins_a_new_file(tmp_path: Path) -> None:
    for _ in range(2):
        made(tmp_path, rows(poisoned=[BAD]), said=[]).train()
    assert len(lines(tmp_path)) == 1


def bad_teacher(name: str) -> ModelTeacher:
    model = toys.mistral(2)
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = float("nan")
    return ModelTeacher(model, name=name)


def test_an_adapter_and_the_teacher_to_blame(tmp_path: Path) -> None:
    """The route of the bad teacher alone has the token; the student takes it."""
    data = rows(poisoned=[BAD], routes=("a", "b"))
    teacher = RoutedTeacher(
        {"a": ModelTeacher(toys.mistral(3), name="teacher of a"), "b": bad_teacher("teacher of b")},
        route_names=("a", "b"),
    )
    model = add_lora(student(poison=0.0), LoraSpec(r=2))
    said: list[str] = []
    trainer = made(
        tmp_path, data, model=model, routes=("a", "b"), teacher=teacher, terms=[NextToken(), Logits(), Attention()],
        said=said,
    )  # fmt: skip
    trainer.train()
    (line,) = lines(tmp_path)
    assert line["teachers"] == ["teacher of b"]
    assert line["student"] is None
    assert line["micro_batches"][0]["terms"] == ["logits", "attention"]
    assert "(logits and attention; 2 rows of a, b; teacher of b gives values that are not finite)" in said[0]
    assert all(bool(value.isfinite().all()) for value in weights(model).values())
    assert trainer.step_metrics.nonfinite_total == 1


# --- float16 ----------------------------------------------------------------------------------------------------


def scaled(
    folder: Path, monkeypatch: pytest.MonkeyPatch, data: Any, *callbacks: Any, scale: float = 1024.0
) -> DistillationTrainer:
    """Trained in float32 with the scaler of float16, which needs no GPU by itself."""
    trainer = made(folder, data, *callbacks, model=student(), said=[])
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.accelerator.native_amp = True
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", "fp16")
    trainer.train()
    monkeypatch.undo()
    return trainer


def test_a_bad_loss_leaves_the_scale_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = scaled(tmp_path / "bad", monkeypatch, rows(poisoned=[BAD]))
    empty = scaled(tmp_path / "empty", monkeypatch, rows(poisoned=[BAD], empty=ITS_STEP))
    same_training(bad, empty)
    assert bad.accelerator.scaler.get_scale() == empty.accelerator.scaler.get_scale() == 1024
    assert bad.step_metrics.nonfinite_total == 1


def test_an_overflow_of_the_scale_is_the_scalers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = scaled(tmp_path, monkeypatch, rows(), BadGradient(4))
    assert trainer.accelerator.scaler.get_scale() == 512
    assert trainer.step_metrics.nonfinite_total == 0
    assert not (tmp_path / "nonfinite.jsonl").exists()


def test_what_a_scale_of_1_cannot_mend_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = scaled(tmp_path, monkeypatch, rows(), BadGradient(4), scale=1.0)
    assert trainer.step_metrics.nonfinite_total == 1


# --- DeepSpeed --------------------------------------------------------------------------------------------------


def test_a_step_that_deepspeed_has_taken_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = made(tmp_path, rows(poisoned=[BAD]))
    here = SimpleNamespace(DEEPSPEED=trainer.accelerator.distributed_type)  # as if it were
    monkeypatch.setattr("preceptor.training.nonfinite.DistributedType", here)
    with pytest.raises(RunFailed) as failed:
        trainer.train()
    assert str(failed.value) == (
        "the loss is not finite (next_token; 2 rows of a; the student's own model.embed_tokens.weight is not finite) "
        "at step 2, which DeepSpeed has taken before anybody could see it, so the weights are lost; rows are listed in "
        f"{tmp_path / 'nonfinite.jsonl'}; go on from the last checkpoint with other rows or a lower learning rate"
    )
