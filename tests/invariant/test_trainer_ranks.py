"""Two gloo processes through DistillationTrainer equal one, and a float64 brute force; they save and resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from invariant import steps, trainer_ranks
from invariant.ranks import on_two_ranks
from invariant.test_one_process import expected, make_trainer
from invariant.trainers import trainer
from preceptor.training.metrics import TIMING, MetricsFile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_two_ranks(trainer_ranks.on_rank, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def lines(text: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in json.loads(line).items() if key not in TIMING} for line in text.splitlines()]


def close(got: list[dict[str, Any]], wanted: list[dict[str, Any]], **how: float) -> None:
    assert [list(line) for line in got] == [list(line) for line in wanted]
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours == pytest.approx(theirs, **how)


def test_two_processes_equal_brute_force(ranks: list[dict[str, Any]]) -> None:
    start, last = expected(True)
    for each in ranks:
        assert steps.distance(each["exact"], last, start) <= 1e-7


def test_two_processes_log_what_one_does(folder: Path, ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = make_trainer(tmp_path, torch.float64, 2)
    alone.add_callback(MetricsFile(tmp_path / "metrics.jsonl"))
    alone.train()
    got = lines((folder / "exact/metrics.jsonl").read_text())
    close(got, lines((tmp_path / "metrics.jsonl").read_text()), rel=1e-6)
    assert len(got) == 6


def test_they_resume_to_the_bit(ranks: list[dict[str, Any]]) -> None:
    for each in ranks:
        found = each["resumed"]
        assert found["last"] == "checkpoint-9"
        assert found["damaged"] == [f"checkpoint-{step}.damaged" for step in range(6, 10)], "by one process"
        assert lines(found["again_lines"]) == lines(found["lines"])
        for name, value in found["whole"].items():
            assert torch.equal(found["again"][name], value), name
    steps_logged = [line["step"] for line in lines(ranks[0]["resumed"]["lines"]) if "loss" in line]
    assert steps_logged == [2, 4, 6, 8, 9]


def test_both_load_the_best_at_the_end(ranks: list[dict[str, Any]]) -> None:
    for name, value in ranks[0]["resumed"]["whole"].items():
        assert torch.equal(ranks[1]["resumed"]["whole"][name], value), name
    losses = [line["eval_loss"] for line in lines(ranks[0]["resumed"]["lines"]) if "eval_loss" in line]
    assert max(losses) > losses[-1]
    for each in ranks:
        assert each["resumed"]["measured"]["eval_loss"] == pytest.approx(each["resumed"]["best"], rel=1e-6)


def test_two_processes_count_and_measure_like_one(ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    """What dropout on other micro-batches does not touch."""
    alone = trainer(tmp_path, **{**trainer_ranks.SETTINGS, "per_device_train_batch_size": 2})
    alone.train()
    wanted = [line for line in lines((tmp_path / "metrics.jsonl").read_text()) if "loss" in line]
    got = [line for line in lines(ranks[0]["resumed"]["lines"]) if "loss" in line]
    for key in ("targets/a", "targets/b", "targets", "tokens", "skipped_steps", "epoch", "learning_rate"):
        assert [line[key] for line in got] == [line[key] for line in wanted]


def test_an_adapter_under_reentrant_checkpointing(ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    start = {name: p for name, p in trainer_start().items() if "lora" in name}
    alone = trainer_ranks.lora(tmp_path, per_device_train_batch_size=2)
    moved = sum(float((alone[name] - start[name]).square().sum()) for name in alone) ** 0.5
    assert moved > 1e-3
    for each in ranks:
        wrong = sum(float((each["lora"][name] - alone[name]).square().sum()) for name in alone) ** 0.5
        assert wrong <= 1e-7 * moved


def trainer_start() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {name: p.detach() for name, p in trainer_ranks.adapted().named_parameters()}


def test_the_first_one_speaks_for_all(ranks: list[dict[str, Any]]) -> None:
    assert [each["heard"] for each in ranks] == [{"rank": 0}, {"rank": 0}]


def test_the_first_one_leads(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["led"] == [True, True, True]
    stages = [{"stage": "one"}, {"stage": "two"}, {"stage": "three"}, 2, 130, {"stage": "three"}, 1]
    assert ranks[1]["led"] == [*stages, "here alone, in four"]
