"""Two processes, one of which meets a row with a NaN: both skip the step, under DDP and FSDP2."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from invariant.ranks import on_two_ranks
from reliability import fault_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = on_two_ranks(fault_ranks.on_rank, tmp_path_factory.mktemp("ranks"))
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value.nan_to_num(7), other[name].nan_to_num(7)), name


@pytest.mark.parametrize("engine", fault_ranks.ENGINES)
def test_both_skip_what_one_cannot_take(engine: str, ranks: list[dict[str, Any]]) -> None:
    for each in ranks:
        found = each[engine]
        same(found["bad"], found["empty"])
        same(found["bad"], ranks[0][engine]["bad"])
        assert found["counted"] == (1, 0)
        assert bool(found["bad"]["lm_head.weight"].isfinite().all())


@pytest.mark.parametrize("engine", fault_ranks.ENGINES)
def test_the_rows_of_the_process_that_met_them(engine: str, ranks: list[dict[str, Any]]) -> None:
    (line,) = ranks[0][engine]["lines"]
    assert (line["step"], line["not_finite"]) == (2, "loss")
    (micro_batch,) = line["micro_batches"]
    assert (micro_batch["process"], micro_batch["micro_batch"]) == (1, 0)
    assert [row["origin"] for row in micro_batch["rows"]] == ["rows.jsonl:6"]


@pytest.mark.parametrize("engine", fault_ranks.ENGINES)
def test_both_stop_with_one_sentence(engine: str, ranks: list[dict[str, Any]]) -> None:
    assert ranks[0][engine]["failed"] == ranks[1][engine]["failed"]
    assert ranks[0][engine]["failed"].startswith("the loss is not finite (next_token; 1 row of a;")


def test_an_infinite_gradient_of_one_process(ranks: list[dict[str, Any]]) -> None:
    for each in ranks:
        same(each["ddp"]["gradient"], each["ddp"]["no gradient"])
