"""Several processes at one run: which of them this is, and how the first leads the others.

The first process (rank 0) alone locks the run directory, decides, writes and prints; the others wait for its word and
take part in the stages that all train together. Its words go through the launcher's key-value store and not through
collectives, which give up after half an hour, while a `generate` stage on the first process may take a day.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NoReturn, TypeVar

from preceptor.errors import InputError
from preceptor.system.interrupts import Interrupted

T = TypeVar("T")

_PARTING = 20.0  # seconds that one process waits for another to end
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def rank() -> int:
    """The number of this process in the run, from 0, as the launcher says."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process decides, writes and prints."""
    return rank() == 0


class LeaderEnded(RuntimeError):  # noqa: N818 - says what happened
    """The first process has stopped, and has said why; this one has nothing to add and ends with the same code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the first process has ended with exit code {code}")
        self.code = code


class _Words:
    """What the first process says, in order, and the others hear."""

    def __init__(self) -> None:
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        # The store under which torch.distributed will find its own peers, under a prefix of our own.
        try:
            store, _, _ = next(rendezvous("env://"))
        except ValueError as error:
            raise InputError(
                f"WORLD_SIZE is {world_size()}, but the processes cannot find each other "
                f"({str(error).rpartition(': ')[2]}); start them with torchrun or accelerate launch, "
                "or unset WORLD_SIZE"
            ) from error
        self._store: Any = PrefixStore("preceptor", store)
        self._count = 0
        self._gathered = 0

    def tell(self, word: Any) -> None:
        self._store.set(f"word/{self._count}", json.dumps(word))
        self._count += 1

    def hear(self, patience: float = math.inf) -> Any:
        """The next word; TimeoutError when it takes longer than `patience` seconds."""
        key = f"word/{self._count}"
        self._wait([key], patience)
        self._count += 1
        word = json.loads(self._store.get(key))
        if "ended" in word:
            raise LeaderEnded(int(word["ended"]))
        return word

    def gather(self, value: Any) -> list[Any]:
        """Every process's value in the first one; it waits however long the others take."""
        number, self._gathered = self._gathered, self._gathered + 1
        if rank() > 0:
            self._store.set(f"given/{number}/{rank()}", json.dumps(value))
            return []
        keys = [f"given/{number}/{other}" for other in range(1, world_size())]
        self._wait(keys, math.inf)
        return [value, *(json.loads(self._store.get(key)) for key in keys)]

    def heard(self) -> None:
        self._store.set(f"heard/{rank()}", "")

    def wait_until_heard(self) -> None:
        """The first process may hold the store: it leaves last."""
        try:
            self._wait([f"heard/{other}" for other in range(1, world_size())], _PARTING)
        except (TimeoutError, LeaderEnded):  # someone is gone already, and has said why
            return

    def _wait(self, keys: list[str], patience: float) -> None:
        # Asked again and again, for a wait inside the store cannot be interrupted.
        begun, pause = time.monotonic(), 0.01
        try:
            while not self._store.check(keys):
                if time.monotonic() - begun > patience:
                    raise TimeoutError(f"no word in {patience} s")
                time.sleep(pause)
                pause = min(2 * pause, 0.5)
        except RuntimeError as error:  # of torch.distributed: no connection
            raise LeaderEnded(1) from error


@cache
def _words() -> _Words:
    return _Words()


def meet() -> None:
    """Find the other processes, if there are any.

    Raises:
        InputError: when the launcher has not said where they are.
    """
    if world_size() > 1:
        _words()


def read_models_whole() -> None:
    """Have every process read a model's weights, although `accelerate launch` may say that the first alone should.

    transformers would give the others empty weights, of teachers as well, which nobody fills.
    """
    os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)


def tell(word: dict[str, Any]) -> None:
    """Say a JSON object to the other processes; nothing when there are none."""
    if world_size() > 1:
        _words().tell(word)


def hear() -> dict[str, Any]:
    """The next object the first process says.

    Raises:
        LeaderEnded: when it has stopped.
    """
    word: dict[str, Any] = _words().hear()
    return word


def from_main(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, which alone calls it: a JSON value, in every process.

    Raises:
        LeaderEnded: in the others, when the first process has stopped instead.
    """
    if world_size() == 1:
        return make()
    if is_main():
        value = make()
        tell({"value": value})
        return value
    heard: T = hear()["value"]
    return heard


def to_main(value: T) -> list[T]:
    """What each process gives here (a JSON value), in the order of ranks: in the first process, which waits for all.

    The others go on at once, with an empty list.
    """
    if world_size() == 1:
        return [value]
    return _words().gather(value)


@contextmanager
def leading() -> Iterator[None]:
    """The first process's block: however it ends, the others are told."""
    try:
        yield
    except BaseException as error:
        tell({"ended": _code(error)})
        raise
    tell({"finished": True})
    if world_size() > 1:
        _words().wait_until_heard()


def _code(error: BaseException) -> int:
    if isinstance(error, Interrupted):
        return error.code
    return 2 if isinstance(error, InputError) else 130 if isinstance(error, KeyboardInterrupt) else 1


def following(take_part: Callable[[dict[str, Any]], None]) -> None:
    """Another process's block: `take_part` is given each word until the first process has finished.

    Raises:
        LeaderEnded: when the first process has stopped, or stops now: what fails everywhere it alone reports.
    """
    while True:
        word = hear()
        if "finished" in word:
            _words().heard()
            return
        try:
            take_part(word)
        except LeaderEnded:
            raise
        except (Exception, Interrupted):
            _let_the_first_speak()
            raise


def _let_the_first_speak() -> None:
    """Raises LeaderEnded if the first process stops soon; a launcher would end it the moment this one does."""
    try:
        while True:
            _words().hear(_PARTING)
    except TimeoutError:
        return


def leave() -> None:
    """End this process's part in torch.distributed, which otherwise complains at exit."""
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def end(code: int) -> NoReturn:
    """End this process with its exit code; one of several without taking the interpreter apart.

    What engines still hold of a process group is torn down with the interpreter, where gloo's threads have aborted
    processes whose work was done ("terminate called without an active exception", one run in dozens).
    """
    if world_size() > 1 and "torch" in sys.modules:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does first
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def end_with_launcher() -> None:
    """Have Linux send this process SIGTERM when the launcher is no more: it leads a session of its own and would go on.

    A launcher that is killed outright passes no signal on; the run directory would stay locked.
    """
    if world_size() > 1 and sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
