"""`preceptor run` in children of one process that has imported all there is to import: a start costs nothing."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import preceptor.report
from preceptor.cli import main
from preceptor.recipe import load_recipe
from preceptor.system.interrupts import SIGNALS
from preceptor.teachers import store_files


class Child:
    """A child as `subprocess.Popen` has it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, patience: float = 300.0) -> int:
        """Its exit code, or minus the number of the signal that ended it."""
        until = time.monotonic() + patience
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"process {self.pid} did not end in {patience:.0f} s")
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def whole(recipe: Path, stages: Sequence[str], *, report: bool = False) -> float:
    """Runs a recipe's stages in this process, which then has all modules in memory; returns the seconds it took."""
    store_files._PATIENCE = 0.0  # a shard for each batch, so that a store is killed between them
    began = time.monotonic()
    for stage in stages:
        preceptor.run(load_recipe(recipe, []), only=stage, log=lambda line: None)
    if not report:
        preceptor.report.write_report = lambda *_, **__: None  # drawing takes longer than a stage
    gc.collect()
    gc.freeze()
    return time.monotonic() - began


def start(arguments: Sequence[str], log: Path, before: Callable[[], object] = lambda: None) -> Child:
    """Forks a child that runs `preceptor ARGUMENTS`, its output added to `log`."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return Child(child)
    code = 70
    try:
        os.setsid()  # signals that are sent to groups reach it alone
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for stream in (1, 2):
            os.dup2(handle, stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        before()
        code = main(list(arguments))
    except BaseException as error:  # a traceback here is a finding, whatever it is
        print(f"UNCAUGHT {type(error).__name__}: {error}", flush=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def codes(way: str) -> set[int]:
    """What a process that was ended in a way may end with; 0: it was done before."""
    number = {"kill": signal.SIGKILL, "power": signal.SIGKILL, "int": SIGNALS[0], "term": SIGNALS[1]}[way]
    # Signals that come before the run has begun, or when it is over, find what the shell would: no handler of ours.
    return {0, -number, 128 + number}
