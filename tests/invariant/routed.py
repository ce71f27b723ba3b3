"""Five steps of SGD on routed toy distillations, in every way that must not matter."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import toys
from invariant import ranks, trainers
from oracle import brute
from preceptor.objective import Attention, Logits, NextToken, Objective
from preceptor.signals import TokenBatch
from preceptor.teachers import AdapterTeacher, ModelTeacher, RoutedTeacher

LEARNING_RATE = 0.1
WEIGHTS = {"next_token": 0.25, "logits": 1.0, "attention": 2.0}
ROUTES = ("general", "shop")
RoutedRow = tuple[Tensor, Tensor, int]

# Rows 0..3 are the first rank's, in two micro-batches, and 4..7 the second's.
ROW_ROUTES = [
    [1, 0, 1, 0, 0, 0, 0, 0],  # the second rank has no row of the shop
    [0, 0, 0, 0, 0, 1, 1, 0],  # nor has the first
    [0, 0, 0, 0, 0, 0, 0, 0],  # nobody has
    [1, 1, 1, 1, 0, 0, 0, 0],  # each has one route only
    [1, 0, 0, 1, 1, 0, 1, 1],
]


def _rows(step: int, routes: Sequence[int]) -> list[RoutedRow]:
    """Rows of unequal length; one has no target, nor have the last two of step 1 (shop and general)."""
    answers = [4, 3, 0, 5, 2, 6, 3, 1]
    if step == 1:
        answers[6:] = [0, 0]
    made = toys.rows(100 + step, [9, 7, 5, 12, 8, 11, 6, 10], answers)
    return [(*row, route) for row, route in zip(made, routes, strict=True)]


STEPS = [_rows(step, routes) for step, routes in enumerate(ROW_ROUTES)]
Cut = Callable[[list[RoutedRow]], Sequence[TokenBatch]]


def batch(rows: Sequence[RoutedRow], **how: Any) -> TokenBatch:
    return toys.batch([[row[:2]] for row in rows], routes=[row[2] for row in rows], **how)


def student(dtype: torch.dtype = torch.float64) -> nn.Module:
    return toys.llama(1, dtype, sharpness=2)


def teachers(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """Of the general rows and of the shop's, which differ in depth."""
    return (
        toys.mistral(2, dtype, sharpness=2, intermediate_size=56),
        toys.mistral(3, dtype, sharpness=2, num_hidden_layers=3),
    )


LAYERS = ({0: 0, 1: 1}, {0: 1, 1: 2})
"""Student layer -> teacher layer, by route."""


def objective() -> Objective:
    terms = [NextToken(WEIGHTS["next_token"]), Logits(WEIGHTS["logits"]), Attention(WEIGHTS["attention"])]
    return Objective(terms, route_names=ROUTES)


class Counting(ModelTeacher):
    """Counts the rows of each forward."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__(model, name=name)
        self.rows: list[int] = []
        model.register_forward_pre_hook(
            lambda _, args, kwargs: self.rows.append(len(kwargs["input_ids"])), with_kwargs=True
        )


def by_brute_force() -> tuple[nn.Module, nn.Module]:
    """The student before and after the steps, row by row in float64."""
    start = student()
    trained = brute.doubled(start)
    doubles = [brute.doubled(each) for each in teachers()]
    for rows in STEPS:
        n = sum(int(is_target[1:].sum()) for _, is_target, _ in rows)
        trained.zero_grad()
        for ids, is_target, route in rows:
            sums = brute.terms_of_row((ids, is_target), trained, doubles[route], layer_map=LAYERS[route])
            (sum(weight * sums[name] for name, weight in WEIGHTS.items()) / n).backward()
        with torch.no_grad():
            for parameter in trained.parameters():
                assert parameter.grad is not None
                parameter -= LEARNING_RATE * parameter.grad
    return start, trained


def run(
    learner: nn.Module,
    teaches: RoutedTeacher,
    cut: Cut,
    *,
    model: nn.Module | None = None,
    world: int = 1,
    accumulate: ranks.Accumulate = lambda last: nullcontext(),
    checkpointing: bool | None = None,
) -> None:
    """Train `learner` in place. `cut` makes this rank's micro-batches of a step; `checkpointing` says if reentrant."""
    losses = objective()
    losses.prepare(student(), teaches)  # a sharded student is not run outside its engine
    if checkpointing is not None:
        learner.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        learner.enable_input_require_grads()
    learner.train()
    model = model or learner
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    for rows in STEPS:
        n = sum(int(is_target[1:].sum()) for _, is_target, _ in rows)
        batches = cut(rows)
        with losses.listening():
            for i, each in enumerate(batches):
                with accumulate(i == len(batches) - 1):
                    sums = losses(model, each, teaches(each, losses.needs), student=learner)
                    (sums.loss * world / n).backward()
        optimizer.step()
        optimizer.zero_grad()


# --- two ranks --------------------------------------------------------------------------------------------------

CASES = [(engine, sharded) for engine in ("ddp", "fsdp2") for sharded in ("no teacher", "the expert", "both teachers")]
ADAPTERS = ("ddp", "fsdp2")


def case_name(engine: str, sharded: str) -> str:
    return f"{engine}, {sharded} sharded"


def on_rank(rank: int, folder: Path) -> None:
    """Every case."""
    for engine, sharded in CASES:
        found = _case(engine, sharded, rank)
        torch.save(found, folder / f"{case_name(engine, sharded)}.{rank}")
    for engine in ADAPTERS:
        torch.save(_adapters(engine, rank), folder / f"{engine} adapters.{rank}")
    torch.save(trained(folder / "trainer", per_device_train_batch_size=1), folder / f"trainer.{rank}")


def _mine(rank: int) -> Cut:
    def cut(rows: list[RoutedRow]) -> list[TokenBatch]:
        mine = rows[rank * 4 : rank * 4 + 4]
        return [batch(mine[i : i + 2]) for i in (0, 2)]

    return cut


def _case(engine: str, sharded: str, rank: int) -> dict[str, Any]:
    learner, made = student(), teachers()
    for model in {"no teacher": (), "the expert": made[1:], "both teachers": made}[sharded]:
        ranks.shard(model)
    counted = [Counting(model, name) for model, name in zip(made, ROUTES)]
    assert [each.sharded for each in counted] == {
        "no teacher": [False, False], "the expert": [False, True], "both teachers": [True, True],
    }[sharded]  # fmt: skip
    teaches = RoutedTeacher(dict(zip(ROUTES, counted)), route_names=ROUTES)
    model, accumulate = ranks.engine(engine, learner)
    for each in counted:
        each.layer_shapes()
        each.rows.clear()
    run(learner, teaches, _mine(rank), model=model, world=2, accumulate=accumulate)
    # `prepare` looks at the layers of each teacher once.
    return {"weights": ranks.whole(learner), "rows": {each.name: each.rows[1:] for each in counted}}


# --- teachers on the student's own base weights -----------------------------------------------------------------


def adapted() -> tuple[Any, RoutedTeacher]:
    """A student with an adapter of its own; expert and reference are another adapter on its base, and none."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(11)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=0.0)
    model = get_peft_model(student(), config, autocast_adapter_dtype=False)
    model.add_adapter("expert", LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear"))
    torch.manual_seed(12)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float64) * 0.2
            parameter.requires_grad_("default" in name)
    made = {
        "shop": AdapterTeacher(model, "expert", name="expert"),
        "general": AdapterTeacher(model, None, name="reference"),
    }
    return model, RoutedTeacher(made, route_names=ROUTES)


def adapters_alone() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All parameters before and after the steps on one process."""
    learner, teaches = adapted()
    start = ranks.whole(learner)
    run(learner, teaches, lambda rows: [batch(rows)])
    return start, ranks.whole(learner)


def _adapters(engine: str, rank: int) -> dict[str, Tensor]:
    learner, teaches = adapted()
    model, accumulate = ranks.engine(engine, learner)
    run(learner, teaches, _mine(rank), model=model, world=2, accumulate=accumulate)
    return ranks.whole(learner)


# --- the Trainer ------------------------------------------------------------------------------------------------


def trained(folder: Path, **settings: Any) -> dict[str, Any]:
    """Three epochs through DistillationTrainer: its log and weights, and the rows each teacher saw on this rank."""
    general, shop = teachers(torch.float32)
    made = [Counting(general, "general"), Counting(shop, "shop")]
    trainer = trainers.trainer(
        folder,
        model=student(torch.float32),
        terms=(NextToken(0.25), Logits(), Attention(2.0, routes=("b",))),
        teacher=RoutedTeacher(dict(zip("ab", made)), route_names=("a", "b")),  # type: ignore[arg-type]
        **{"optim": "sgd", "learning_rate": 0.1, "save_strategy": "no", "logging_steps": 1, **settings},
    )
    for each in made:
        each.rows.clear()
    trainer.train()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"lines": lines, "weights": trainers.weights(trainer.model), "rows": [each.rows for each in made]}
