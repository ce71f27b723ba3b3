"""Failures of the machine that other libraries report in their own words: memory that ran out, a process that died."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from signal import Signals

from preceptor.errors import RunFailed

_CUDA = re.compile(
    r"Tried to allocate ([\d.]+ \w+)\..*?total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", re.S
)
_CPU = re.compile(r"(?:can't allocate memory|not enough memory): you tried to allocate (\d+) bytes")
_NUMPY = re.compile(r"Unable to allocate ([\d.]+ \w+)")
_EXITED = re.compile(
    r"DataLoader worker \(pid\(?s?\)?:? ?([\d, ]+)\) (?:exited unexpectedly|is killed by signal: (.+?)\.)"
)
_IN_WORKER = re.compile(r"Caught (\w+) in DataLoader worker process (\d+)")


class OutOfMemory(RunFailed):
    """Memory ran out in a training; `rows` and `tokens` are those of the batch it worked on, where there was one."""

    def __init__(self, message: str, *, rows: int | None = None, tokens: int | None = None) -> None:
        super().__init__(message)
        self.rows, self.tokens = rows, tokens


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those it was raised from."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)


def out_of_memory(error: BaseException) -> str | None:
    """What ran out, if that is what is wrong: the GPU's memory, or this machine's."""
    for each in causes(error):
        text = str(each)
        if type(each).__name__ == "OutOfMemoryError" or "CUDA error: out of memory" in text:
            found = _CUDA.search(text)
            more = f" (tried to allocate {found[1]} more, of {found[2]} there were {found[3]} left)" if found else ""
            return f"the GPU ran out of memory{more}"
        if "CUBLAS_STATUS_ALLOC_FAILED" in text or "CUDNN_STATUS_ALLOC_FAILED" in text:
            return "the GPU ran out of memory (a library found none for its workspace)"
        if isinstance(each, RuntimeError) and (found := _CPU.search(text)):
            return f"this machine ran out of memory (tried to allocate {int(found[1]) / 2**30:,.2f} GiB more)"
        if isinstance(each, MemoryError):
            found = _NUMPY.search(text)
            return f"this machine ran out of memory{f' (tried to allocate {found[1]} more)' if found else ''}"
    return None


def dead_worker(error: BaseException) -> tuple[str, str] | None:
    """What became of a process that prepared data, if that is what is wrong; and what to do."""
    for each in causes(error):
        text = str(each)
        if found := _EXITED.search(text):
            how = "ended by itself" if found[2] is None else f"was killed by {_signal(found[2])}"
            return f"a process that prepares batches (pid {found[1].strip()}) {how}", (
                "it may have run out of memory, which `training.dataloader_num_workers: 0` spares (the main process "
                "then prepares the batches, with the same result)"
            )
        if found := _IN_WORKER.search(text):
            last = text.strip().splitlines()[-1].strip()
            return f"a process that prepares batches failed ({last[:300]})", (
                "`training.dataloader_num_workers: 0` has the main process prepare them, with the same result"
            )
    return None


def _signal(name: str) -> str:
    """`Killed` is what the C library calls SIGKILL."""
    known = {"Killed": Signals.SIGKILL, "Terminated": Signals.SIGTERM, "Segmentation fault": Signals.SIGSEGV}
    with suppress(KeyError):
        return known[name].name
    return name
