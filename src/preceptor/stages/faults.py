"""What a training stage says when memory runs out or a process that prepares its batches dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from preceptor.errors import InputError, RunFailed
from preceptor.faults import OutOfMemory, dead_worker, out_of_memory
from preceptor.trainer import DistillationTrainer


@contextmanager
def told(trainer: DistillationTrainer) -> Iterator[None]:
    """Around a training.

    Raises:
        OutOfMemory: with the batch that was too much.
        RunFailed: for a dead process, with what to set instead.
    """
    try:
        yield
    except (InputError, OutOfMemory):
        raise
    except Exception as error:
        if (what := out_of_memory(error)) is not None:
            rows, tokens = trainer.batch_shape or (None, None)
            batch = "" if rows is None else f", on a batch of {rows} row{'s' * (rows != 1)} of {tokens:,} tokens"
            step = trainer.state.global_step + 1
            raise OutOfMemory(f"{what} in step {step}{batch}", rows=rows, tokens=tokens) from error
        if (dead := dead_worker(error)) is not None:
            raise RunFailed(f"{dead[0]} in step {trainer.state.global_step + 1}; {dead[1]}") from error
        raise
