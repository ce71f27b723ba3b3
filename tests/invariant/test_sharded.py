"""DistillationTrainer under FSDP2 on two gloo ranks, teachers cut as well, is one process: weights, files, figures."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from invariant import routed, sharded_ranks, steps
from invariant.ranks import on_two_ranks
from invariant.ranks import whole as all_weights
from invariant.test_routed import same_adapters
from oracle import brute
from preceptor.system.files import verify_directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_two_ranks(sharded_ranks.on_rank, tmp_path_factory.mktemp("sharded"))


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def found(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    return ranks[0]


@cache
def expected(tied: bool) -> tuple[torch.nn.Module, torch.nn.Module]:
    student, teacher = steps.models(tied, torch.float64)
    return student, brute.train(student, teacher, steps.STEPS, steps.WEIGHTS, steps.LEARNING_RATE)


@pytest.mark.parametrize("name", sharded_ranks.CASES)
def test_distillation_equals_brute_force(found: dict[str, Any], name: str) -> None:
    start, last = expected(sharded_ranks.CASES[name]["tied"])
    assert steps.distance(found[name], last, start) <= 1e-7


def test_routed_distillation_equals_brute_force(found: dict[str, Any]) -> None:
    start, last = routed.by_brute_force()
    assert steps.distance(found["dae"], last, start) <= 1e-7


def test_a_sharded_teacher_without_rows_is_called_with_one(ranks: list[dict[str, Any]]) -> None:
    for route in (0, 1):
        calls = [each["rows"][route] for each in ranks]
        assert len(calls[0]) == len(calls[1]) == len(routed.STEPS) * 2
        rows = sum(
            bool(is_target[1:].any()) and theirs == route for step in routed.STEPS for _, is_target, theirs in step
        )
        assert sum(map(sum, calls)) > rows, "somewhere a rank had none, and one row was made up"


def test_teachers_on_the_base_weights_of_a_sharded_student(found: dict[str, Any]) -> None:
    start, last = routed.adapters_alone()
    same_adapters(found["lora"], last, start)
    assert found["lora alone"] == sorted(name for name in last if "lora" in name and "default" in name)


def test_clipped_gradients_and_a_launcher_that_asks_for_it(found: dict[str, Any], tmp_path: Path) -> None:
    alone = sharded_ranks.clipped(tmp_path, sharded=False, per_device_train_batch_size=4)
    assert found["clipped"]["norms"] == pytest.approx(alone["norms"], rel=1e-9)
    assert max(alone["norms"]) > 4, "the case must clip"
    for name, value in alone["weights"].items():
        torch.testing.assert_close(found["clipped"]["weights"][name], value, rtol=1e-9, atol=1e-12)


def test_bfloat16_keeps_sums_in_float32(found: dict[str, Any], tmp_path: Path) -> None:
    """Beside one process under autocast: roundings differ, gradients are of one precision."""
    one = sharded_ranks.low_precision(tmp_path, per_device_train_batch_size=4)
    exact = sharded_ranks.low_precision(tmp_path, per_device_train_batch_size=4, bf16=False)
    start = all_weights(steps.models(False, torch.float32)[0])

    def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], names: list[str]) -> float:
        wrong = sum(float((a[name] - b[name]).square().sum()) for name in names)
        return float((wrong / sum(float((b[name] - start[name]).square().sum()) for name in names)) ** 0.5)

    everywhere = list(start)
    error = apart(one, exact, everywhere)
    assert 1e-4 < error < 0.1
    assert apart(found["bf16"], exact, everywhere) < 1.5 * error
    head = ["lm_head.weight"]
    assert apart(found["bf16"], exact, head) < 1.5 * apart(one, exact, head)


def test_gradients_are_summed_in_float32(found: dict[str, Any]) -> None:
    both, one = found["coarse"]
    matrices = [name for name in both if "proj" in name or "lm_head" in name]
    assert max(both[name] for name in matrices) < 0.6, both
    assert one["lm_head.weight"] < 0.3, "the head's gradient is a sum over positions, in float32 throughout"
    assert one["model.layers.0.mlp.up_proj.weight"] > 0.9, "those of layers come from products in bfloat16"


def test_a_step_without_targets_moves_nothing(found: dict[str, Any]) -> None:
    with_it, without = found["skipped"]["with"], found["skipped"]["without"]
    assert (with_it["skipped"], without["skipped"]) == (1, 0)
    for name, value in without["weights"].items():
        assert torch.equal(with_it["weights"][name], value), name


def test_it_resumes_to_the_bit(found: dict[str, Any]) -> None:
    resumed = found["resumed"]
    assert resumed["losses"][1] == resumed["losses"][0]
    assert len(resumed["losses"][0]) == 6
    for name, value in resumed["whole"].items():
        assert torch.equal(resumed["again"][name], value), name
    assert resumed["states"] == len(resumed["whole"])


def test_what_a_checkpoint_is(found: dict[str, Any], folder: Path) -> None:
    names = [
        "manifest.json", "metrics_state.json", "rng_state_0.pth", "rng_state_1.pth", "scheduler.pt",
        "shards-00000.safetensors", "shards-00001.safetensors", "trainer_state.json",
    ]  # fmt: skip
    assert found["resumed"]["files"] == names
    assert found["resumed"]["left"] == ["checkpoint-4", "checkpoint-6"], "beyond save_total_limit they are dropped"
    verify_directory(folder / "resumed/checkpoint-6")


def test_one_process_goes_on_where_two_were(found: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    settings = {**sharded_ranks.ADAMW, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    alone = sharded_ranks.kd(tmp_path, tied=False, sharded=False, **settings)
    alone.train(resume_from_checkpoint=str(folder / "resumed/checkpoint-4"))
    assert alone.state.global_step == 6
    for name, value in all_weights(alone.model).items():
        torch.testing.assert_close(found["resumed"]["whole"][name], value, rtol=1e-9, atol=1e-12)


def test_its_export_is_a_plain_checkpoint(found: dict[str, Any], folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "exported", dtype=torch.float64)
    for name, value in model.state_dict().items():
        assert torch.equal(value, found["resumed"]["again"][name]), name


def test_it_measures_what_one_process_does_and_goes_back_to_the_best(
    ranks: list[dict[str, Any]], tmp_path: Path
) -> None:
    alone = sharded_ranks.evaluated(tmp_path, per_device_train_batch_size=4)
    for each in ranks:
        assert each["evaluated"].keys() == alone.keys()
        for key, value in alone.items():
            assert each["evaluated"][key] == pytest.approx(value, rel=1e-9), key
    assert alone["first"] < min(alone["second"], alone["eval_loss"]), "the last step is not the best"
    assert alone["after_loss"] == alone["first"]
