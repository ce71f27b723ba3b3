"""Runs the study's jobs in processes of one thread each, a few at a time, and passes their progress on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preceptor.errors import InputError, RunFailed
from preceptor.system.interrupts import Interrupted

Log = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One worker process: a seed's recipe, and the stage of it to run (or several, joined by commas).

    `cost` is its time in any unit; jobs named in `after` must have ended first, and jobs of an earlier `phase` start
    first where there is a choice.
    """

    name: str
    recipe: Path
    stage: str
    cost: float
    after: tuple[str, ...] = ()
    phase: int = 0


def workers_for(jobs: int) -> int:
    """As many processes as there are cores, and at least two: on one core a second one costs nothing."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(jobs, max(2, cores)))


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """By phase, and within one by the time of all that waits for a job, its own included: the longest chain first."""
    chain: dict[str, float] = {}

    def length(job: Job) -> float:
        if job.name not in chain:
            waiting = [other for other in jobs if job.name in other.after and other.phase == job.phase]
            chain[job.name] = job.cost + max((length(other) for other in waiting), default=0.0)
        return chain[job.name]

    return sorted(jobs, key=lambda job: (job.phase, -length(job)))


def run_side_by_side(jobs: Sequence[Job], log: Log, *, module: str = "preceptor.pocket.worker") -> None:
    """Run every job as soon as those it waits for have ended; the first failure stops the rest.

    Raises:
        InputError: a worker found the input wrong (exit code 2).
        RunFailed: a worker failed otherwise.
    """
    pool = _Pool(jobs, log, module)
    threads = [threading.Thread(target=pool.work, daemon=True) for _ in range(workers_for(len(jobs)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt as stop:
        pool.stop()
        pool.wait()  # trainings end with a checkpoint; a second signal waits no longer
        number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
        raise Interrupted(number, "demo: stopped; what is finished is kept, and the same command goes on") from None
    except BaseException:
        pool.stop()
        raise
    # Those that were stopped come with a negative code and say nothing of the cause.
    for job, code, said in sorted(pool.failures, key=lambda failure: failure[1] < 0):
        last = said.splitlines()[-1] if said else f"exit code {code}"
        if code == 2:
            raise InputError(last)
        raise RunFailed(
            f"demo: {job.name} failed: {last}; finished stages are kept, and the same command goes on with the others"
        )


class _Pool:
    """Jobs that wait, run and have ended; every thread of it takes the first that is ready."""

    def __init__(self, jobs: Sequence[Job], log: Log, module: str) -> None:
        self.failures: list[tuple[Job, int, str]] = []
        self._waiting = in_order(jobs)
        self._unfinished = {job.name for job in jobs}
        self._running: set[subprocess.Popen[str]] = set()
        self._changed = threading.Condition()
        self._stopping = False
        self._log, self._module = log, module

    def work(self) -> None:
        """Run jobs until none is left."""
        while (job := self._next()) is not None:
            code, said = self._run(job)
            with self._changed:
                self._unfinished.discard(job.name)
                if code:
                    self.failures.append((job, code, said))
                self._changed.notify_all()
            if code:
                self.stop()

    def stop(self) -> None:
        """End what runs and start nothing more."""
        with self._changed:
            self._stopping = True
            for process in self._running:
                process.terminate()
            self._changed.notify_all()

    def wait(self) -> None:
        """Until nothing runs. Not by joining threads: in Python 3.11 one whose join was interrupted counts as ended."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running)

    def _next(self) -> Job | None:
        with self._changed:
            while self._waiting and not self._stopping:
                for job in self._waiting:
                    if not self._unfinished.intersection(job.after):
                        self._waiting.remove(job)
                        return job
                self._changed.wait()
            return None

    def _run(self, job: Job) -> tuple[int, str]:
        with self._changed:
            if self._stopping:
                return 0, ""
            process = subprocess.Popen(
                [sys.executable, "-m", self._module, str(job.recipe), job.stage],
                env=_one_thread(os.environ),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
            self._running.add(process)
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
        reader.start()
        for line in process.stdout or ():
            with self._changed:
                self._log(f"{job.name}  {line.rstrip().removeprefix(job.stage + ': ')}")
        code = process.wait()
        reader.join()
        with self._changed:
            self._running.discard(process)
        return code, "".join(errors).strip()


def _one_thread(environment: Mapping[str, str]) -> dict[str, str]:
    return {**environment, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
