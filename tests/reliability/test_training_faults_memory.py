"""Memory that runs out: what is said, what a plan suggests, and that a training goes on with less."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import preceptor
from invariant.recipes import MICRO, TRAINING, quiet, recipe
from preceptor.errors import InputError, RunFailed
from preceptor.faults import OutOfMemory, dead_worker, out_of_memory
from preceptor.plan import out_of_memory as planned
from preceptor.running.exhausted import explained
from preceptor.system.interrupts import listening
from preceptor.trainer import DistillationTrainer

SETTINGS = {**TRAINING, "num_train_epochs": 2, "save_steps": 2, "eval_strategy": "no"}  # 6 steps


def exhaust() -> None:
    torch.empty(2**50, dtype=torch.uint8)  # a petabyte: torch's allocator says what it says of any other


def fail_in(monkeypatch: pytest.MonkeyPatch, micro_batch: int, fault: Callable[[], object]) -> None:
    """Let `fault()` happen in the forward of micro-batch `micro_batch`, from 0."""
    calls = iter(range(10**6))
    compute = DistillationTrainer.compute_loss

    def failing(self: DistillationTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, *args, **kwargs)
        if next(calls) == micro_batch:
            fault()
        return loss

    monkeypatch.setattr(DistillationTrainer, "compute_loss", failing)


def test_a_training_says_what_ran_out_and_goes_on_with_a_smaller_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact: dict[str, Any] = {"dropout": 0.0, "lora": None}
    whole = preceptor.run(recipe(tmp_path, "whole", training=SETTINGS, **exact), log=quiet)["stages"]["kd"]
    fail_in(monkeypatch, 4 * MICRO + 1, exhaust)
    monkeypatch.setattr(planned, "SECONDS", 300)  # a busy machine may need more than a run would wait
    with pytest.raises(RunFailed) as failed:
        preceptor.run(recipe(tmp_path, "parts", training=SETTINGS, **exact), log=quiet)
    monkeypatch.undo()
    assert re.match(
        r"stage kd failed: this machine ran out of memory \(tried to allocate 1,048,576\.00 GiB more\) in step 5, on a "
        r"batch of 2 rows of \d\d tokens; `preceptor plan` reckons \d\.\d MB for such a step, \d\.\d MB with "
        r"`training\.per_device_train_batch_size: 1` \(which this stage can go on with\)"
        r"(?: and, begun anew with --redo kd, \d\.\d MB with .*)?; what is finished is kept, and once the cause is "
        r"mended `preceptor run recipe` goes on from there \(traceback: .*/kd/error\.txt\)$",
        str(failed.value),
    ), str(failed.value)
    with pytest.raises(InputError, match="gradient_checkpointing"):
        preceptor.run(recipe(tmp_path, "parts", training={**SETTINGS, "gradient_checkpointing": True}, **exact))
    lines: list[str] = []
    smaller = {**SETTINGS, "per_device_train_batch_size": 1}
    again = preceptor.run(recipe(tmp_path, "parts", training=smaller, **exact), log=lines.append)["stages"]["kd"]
    assert "kd: resumes from checkpoint-4" in lines
    assert again["steps"] == whole["steps"]
    for part, terms in whole["after"].items():
        assert again["after"][part] == pytest.approx(terms, rel=1e-3), part


CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 3.17 GiB is "
    "free. Including non-PyTorch memory, this process has 75.93 GiB memory in use."
)


def numpy_error() -> BaseException:
    with pytest.raises(MemoryError) as raised:
        np.empty(2**50, dtype=np.uint8)
    return raised.value


def torch_error() -> BaseException:
    with pytest.raises(RuntimeError) as raised:
        exhaust()
    return raised.value


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            lambda: torch.OutOfMemoryError(CUDA),
            "the GPU ran out of memory (tried to allocate 20.00 GiB more, of 79.11 GiB there were 3.17 GiB left)",
        ),
        (torch_error, "this machine ran out of memory (tried to allocate 1,048,576.00 GiB more)"),
        (numpy_error, "this machine ran out of memory (tried to allocate 1.00 PiB more)"),
        (MemoryError, "this machine ran out of memory"),
        (
            lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "the GPU ran out of memory (a library found none for its workspace)",
        ),
        (lambda: RuntimeError("shapes differ"), None),
    ],
    ids=["cuda", "cpu", "numpy", "python", "cublas", "another"],
)
def test_what_ran_out(error: Callable[[], BaseException], said: str | None) -> None:
    raised = error()
    assert out_of_memory(raised) == said
    wrapped = RunFailed("teacher big failed")
    wrapped.__cause__ = raised
    assert out_of_memory(wrapped) == said
    wrapped.__cause__, wrapped.__context__, wrapped.__suppress_context__ = None, raised, True
    assert out_of_memory(wrapped) is None


def test_a_worker_that_ended_by_itself() -> None:
    found = dead_worker(RuntimeError("DataLoader worker (pid(s) 17, 18) exited unexpectedly"))
    assert found is not None
    assert found[0] == "a process that prepares batches (pid 17, 18) ended by itself"


def test_what_is_no_lack_of_memory_stays_what_it_is(tmp_path: Path) -> None:
    error = ValueError("no")
    assert explained(error, recipe(tmp_path, "runs"), "kd") is error


def test_a_stage_without_training_is_told_of_its_batch(tmp_path: Path) -> None:
    stages = {"answers": {"kind": "generate", "model": "somewhere", "prompts": "shop", "rows": 2, "batch_size": 4}}
    made = preceptor.recipe.parse_recipe(
        {"name": "g", "data": {"shop": {"path": "shop.jsonl"}}, "stages": stages}, folder=tmp_path
    )
    said = explained(MemoryError(), made, "answers")
    assert str(said) == ("this machine ran out of memory; `batch_size` is 4 and can be lower, which changes no result")


def test_without_time_the_plan_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And an alarm that somebody else has set still rings."""
    monkeypatch.setattr("preceptor.plan.out_of_memory._simulations", lambda *_: time.sleep(30))
    monkeypatch.setattr(planned, "SECONDS", 0.2)
    rang: list[int] = []
    handler = signal.signal(signal.SIGALRM, lambda number, _: rang.append(number))
    before = signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        error = OutOfMemory("the GPU ran out of memory in step 3", rows=2, tokens=9)
        said = explained(error, recipe(tmp_path, "runs"), "kd")
        time.sleep(1)
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *before)
    assert str(said) == (
        "the GPU ran out of memory in step 3; `training.per_device_train_batch_size` can be lower, and "
        "`preceptor plan recipe` says what else helps"
    )
    assert rang == [signal.SIGALRM]


def test_what_was_found_in_time_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late() -> Any:
        yield planned.Lighter("`training.per_device_train_batch_size: 1`", 2 * 10**9, True)
        yield planned.Lighter("`lora: {r: 16}`", 3 * 10**9, False)
        yield planned.Lighter("`gradient_checkpointing: true` in training", 39 * 10**8, False)  # hardly less
        raise TimeoutError

    made = recipe(tmp_path, "runs")
    monkeypatch.setattr("preceptor.plan.out_of_memory._simulations", lambda *_: (4 * 10**9, late()))
    assert planned.advice(made, "kd", rows=None, tokens=None) == (
        "`preceptor plan` reckons 4.0 GB for such a step, 2.0 GB with `training.per_device_train_batch_size: 1` (which "
        "this stage can go on with) and, begun anew with --redo kd, 3.0 GB with `lora: {r: 16}`"
    )
    monkeypatch.setattr("preceptor.plan.out_of_memory._simulations", lambda *_: (4 * 10**9, iter(())))
    assert planned.advice(made, "kd", rows=None, tokens=None) == (
        "`preceptor plan` reckons 4.0 GB for such a step and says what needs less, such as a lower "
        "`training.per_device_train_batch_size`"
    )


SHORT = (
    "the GPU ran out of memory in step 3; `training.per_device_train_batch_size` can be lower, and "
    "`preceptor plan recipe` says what else helps"
)


def swallows() -> None:
    with suppress(TimeoutError):  # as a library that tries one way and then another
        time.sleep(30)
    time.sleep(30)


def interrupts() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)


@pytest.mark.parametrize("fault", [swallows, interrupts])
def test_the_search_ends_and_the_cause_is_told(
    fault: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preceptor.plan.out_of_memory._simulations", lambda *_: fault())
    monkeypatch.setattr(planned, "SECONDS", 0.1)
    begun = time.monotonic()
    with listening(quiet):
        said = explained(OutOfMemory("the GPU ran out of memory in step 3"), recipe(tmp_path, "runs"), "kd")
    assert str(said) == SHORT
    assert time.monotonic() - begun < 25


def test_a_device_that_gives_nothing_back_hides_no_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", broken)
    said = explained(OutOfMemory("the GPU ran out of memory in step 3"), recipe(tmp_path, "runs"), "kd")
    assert str(said) == SHORT
