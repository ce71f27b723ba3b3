"""Four steps of SGD on a sparse toy student with router_balance, on one process and on two gloo ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import toys
from preceptor.objective import NextToken, Objective, RouterBalance

LEARNING_RATE, WEIGHT, CROSS_ENTROPY = 0.1, 2.0, 0.3
MicroBatch = list[tuple[Tensor, Tensor]]

CASES = [(engine, reentrant) for engine in ("ddp", "fsdp2") for reentrant in (None, True, False)]


def case_name(engine: str, reentrant: bool | None) -> str:
    return f"{engine}-{ {None: 'plain', True: 'reentrant', False: 'checkpointed'}[reentrant] }"


def micro_batches(step: int) -> list[MicroBatch]:
    """Four of two rows each; ranks take two. In step 2 one has no target."""
    answers = [4, 3, 0, 5, 2, 6, 3, 1]
    if step == 2:
        answers[6:] = [0, 0]
    rows = toys.rows(200 + step, [9, 7, 5, 12, 8, 11, 6, 10], answers)
    return [rows[i : i + 2] for i in range(0, 8, 2)]


STEPS = [micro_batches(step) for step in range(4)]


def student() -> Any:
    return toys.sparse("mixtral", 1, torch.float64, sharpness=2.0)


def train(
    model: nn.Module,
    inner: Any,
    mine: Callable[[list[MicroBatch]], Sequence[MicroBatch]],
    *,
    world: int = 1,
    accumulate: Callable[[bool], Any] = lambda last: nullcontext(),
    reentrant: bool | None = None,
) -> None:
    """Train `model` in place; `inner` is the student inside it, `mine` this rank's micro-batches of a step."""
    objective = Objective([NextToken(CROSS_ENTROPY), RouterBalance(WEIGHT)])
    objective.prepare(student())  # a sharded student is not run outside its engine
    if reentrant is not None:
        inner.gradient_checkpointing_enable({"use_reentrant": reentrant})
        inner.enable_input_require_grads()
    inner.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for step in STEPS:
        n = sum(int(is_target[1:].sum()) for rows in step for _, is_target in rows)
        batches = [toys.batch([[row] for row in rows], padding_side="left") for rows in mine(step)]
        with objective.listening():
            for i, batch in enumerate(batches):
                with accumulate(i == len(batches) - 1):
                    (objective(model, batch, student=inner).loss * world / n).backward()
        optimizer.step()
        optimizer.zero_grad()


def rank_main(rank: int, directory: str) -> None:
    """Both engines and all kinds of checkpointing on one of two gloo ranks."""
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    try:
        for engine, reentrant in CASES:
            _run_rank(engine, reentrant, rank, Path(directory) / case_name(engine, reentrant))
    finally:
        dist.destroy_process_group()


def _run_rank(engine: str, reentrant: bool | None, rank: int, path: Path) -> None:
    inner = student()
    if engine == "ddp":
        model: nn.Module = nn.parallel.DistributedDataParallel(inner)

        def accumulate(last: bool) -> Any:
            return nullcontext() if last else model.no_sync()  # type: ignore[operator]
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        mesh = init_device_mesh("cpu", (2,))
        for layer in inner.model.layers:
            fully_shard(layer, mesh=mesh)
        model = fully_shard(inner, mesh=mesh)
        assert all(isinstance(p, DTensor) for p in model.parameters()), "FSDP2 did not shard"

        def accumulate(last: bool) -> Any:
            model.set_requires_gradient_sync(last)  # type: ignore[operator]
            return nullcontext()

    def mine(step: list[MicroBatch]) -> list[MicroBatch]:
        return step[2 * rank : 2 * rank + 2]

    train(model, inner, mine, world=2, accumulate=accumulate, reentrant=reentrant)
    whole = {
        name: (p.detach().full_tensor() if hasattr(p, "full_tensor") else p.detach())
        for name, p in inner.named_parameters()
    }
    if rank == 0:
        torch.save(whole, path)
