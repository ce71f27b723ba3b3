"""What would have needed less, for a training that ran out of memory: a plan's simulations, in a few seconds."""

from __future__ import annotations

import gc
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preceptor.recipe import DistillStage, ModelSpec, Recipe, SftStage
from preceptor.recipe.training import DEFAULT_BATCH
from preceptor.running.identity import same_result
from preceptor.running.stage_state import STAGE_FILE
from preceptor.stages.context import StageContext, run_directory

SECONDS = 15.0
"""How long a run that has failed anyway looks for what helps."""
_NAMED = 3  # changes besides a smaller batch
_WORTH = 0.95  # of what is needed now; a change that saves less is not named
_BATCH = "per_device_train_batch_size"


@dataclass(frozen=True)
class Lighter:
    """A change of the stage, the bytes that a step needs with it, and whether the stage can go on with it."""

    change: str
    needed: int
    same_stage: bool


def advice(recipe: Recipe, name: str, *, rows: int | None, tokens: int | None) -> str:
    """A part of a sentence: what a step of stage `name` needs, and what would need less.

    Nothing where that is not found in time.

    Args:
        rows: those of the batch that was too much; None: as the stage has them.
        tokens: of each of its rows, padding included.
    """
    found: list[int] = []
    lighter: list[Lighter] = []
    try:
        with _at_most(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            needed, changes = _simulations(recipe, name, rows, tokens)
            found.append(needed)
            for each in changes:
                if each.needed < _WORTH * needed:
                    lighter.append(each)
    except (Exception, KeyboardInterrupt):  # of whatever kind: the failure that is to be told is another one
        pass
    return _worded(found[0], lighter, name) if found else ""


def _worded(needed: int, lighter: list[Lighter], name: str) -> str:
    said = f"`preceptor plan` reckons {_gb(needed)} for such a step"
    if not lighter:
        return f"{said} and says what needs less, such as a lower `training.{_BATCH}`"
    same = [each for each in lighter if each.same_stage]
    other = sorted((each for each in lighter if not each.same_stage), key=lambda each: each.needed)[:_NAMED]
    if same:
        said += f", {_listed(same)} (which this stage can go on with)"
    if other:
        said += f"{' and,' if same else ','} begun anew with --redo {name}, {_listed(other)}"
    return said


def _listed(changes: list[Lighter]) -> str:
    return ", ".join(f"{_gb(each.needed)} with {each.change}" for each in changes)


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _simulations(recipe: Recipe, name: str, rows: int | None, tokens: int | None) -> tuple[int, Iterator[Lighter]]:
    """The bytes of a step as it is, and then those with each change, as they are found."""
    from preceptor.distributed import world_size
    from preceptor.estimate.alternatives import alternatives
    from preceptor.estimate.device import overhead
    from preceptor.estimate.setups import Setup
    from preceptor.estimate.sharding import on_each, sharding_of
    from preceptor.estimate.step import simulate
    from preceptor.estimate.target import Device
    from preceptor.models.tokenizers import load_tokenizer
    from preceptor.plan.setups import Rows, full_row, training_setup
    from preceptor.plan.sources import Sources

    stage = recipe.stages[name]
    assert isinstance(stage, SftStage | DistillStage)
    directory = run_directory(recipe)
    context = StageContext(recipe, name, directory / name, recipe.seed, lambda line: None)
    done = {each for each in recipe.stages if Path(directory, each, STAGE_FILE).exists()}
    device = Device(devices=world_size())

    def tokenizer(spec: ModelSpec) -> Any:
        return load_tokenizer(context.resolve_model(spec))

    known = load_tokenizer(context.resolve_model(stage.student if isinstance(stage, DistillStage) else stage.model))
    row = full_row(min(stage.shares), tokens or stage.max_length)
    setup = training_setup(
        stage,
        context,
        Sources(context, done, tokenizer),
        Rows(None, len(known), known.pad_token_id or 0),
        device.devices,
        (row,) * rows if rows else None,
    )
    low = bool(setup.arguments.bf16 or setup.arguments.fp16)
    sharding = sharding_of(stage.training, device.devices, low_precision=low)

    def needs(changed: Setup) -> int:
        total = on_each(simulate(changed), sharding).total
        gc.collect()
        return total + overhead(device.kind, total)

    def lighter() -> Iterator[Lighter]:
        given = int(stage.training.get(_BATCH, DEFAULT_BATCH))
        per_process = stage.rows_per_step // device.devices
        smaller = [size for size in range(1, given // 2 + 1) if per_process % size == 0]
        for size in sorted({max(smaller), 1} if smaller else (), reverse=True):
            share = max(1, len(setup.batch) * size // given)
            changed = stage.model_copy(update={"training": {**stage.training, _BATCH: size}})
            keeps = same_result(recipe, recipe.model_copy(update={"stages": {**recipe.stages, name: changed}}), name)
            part = replace(setup, batch=setup.batch[:share], accumulation=per_process // size)
            yield Lighter(f"`training.{_BATCH}: {size}`", needs(part), keeps)
        for text, change in alternatives(setup):
            if _BATCH not in text:
                yield Lighter(text, needs(change(setup)), False)

    return needs(setup), lighter()


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError inside the block after so many seconds; outside the main thread at once."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        raise TimeoutError("nothing here can interrupt a simulation")
    begun = time.monotonic()

    inside = True

    def stop(*_: object) -> None:
        if inside:
            raise TimeoutError

    handler: Callable[..., object] | int | None = signal.signal(signal.SIGALRM, stop)
    before, _ = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again: libraries catch errors of their own
    try:
        yield
    finally:
        inside = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if before:  # somebody else's alarm
            signal.setitimer(signal.ITIMER_REAL, max(before - (time.monotonic() - begun), 0.001))
