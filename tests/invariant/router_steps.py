"""Four steps of SGD on a sparse toy student with router_balance, on one process and on two gloo ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import toys
from invariant import ranks
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
    accumulate: ranks.Accumulate = lambda last: nullcontext(),
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


def on_rank(rank: int, folder: Path) -> None:
    """Both engines and all kinds of checkpointing."""

    def mine(step: list[MicroBatch]) -> list[MicroBatch]:
        return step[2 * rank : 2 * rank + 2]

    for name, reentrant in CASES:
        inner = student()
        model, accumulate = ranks.engine(name, inner)
        train(model, inner, mine, world=2, accumulate=accumulate, reentrant=reentrant)
        trained = ranks.whole(inner)
        if rank == 0:
            torch.save(trained, folder / case_name(name, reentrant))
