"""Runs the study's jobs in processes of one thread each, a few at a time, and passes their progress on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from preceptor.errors import InputError, RunFailed

Log = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One worker process: a seed's recipe and the method to run, or `teacher` to score the teacher."""

    seed: int
    recipe: Path
    method: str
    cost: float


def workers_for(jobs: int) -> int:
    """As many processes as there are cores, and at least two: on one core a second one costs nothing."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(jobs, max(2, cores)))


def run_side_by_side(jobs: Sequence[Job], log: Log, *, module: str = "preceptor.pocket.worker") -> None:
    """Run every job, the dearest of each seed first; the first failure stops the rest.

    Raises:
        InputError: a worker found the input wrong (exit code 2).
        RunFailed: a worker failed otherwise.
    """
    running: set[subprocess.Popen[str]] = set()
    guard, stopping = threading.Lock(), threading.Event()
    log_line = threading.Lock()

    def one(job: Job) -> tuple[Job, int, str] | None:
        with guard:
            if stopping.is_set():
                return None
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(job.recipe), job.method],
                env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
            running.add(process)
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
        reader.start()
        for line in process.stdout or ():
            with log_line:
                log(f"seed {job.seed}  {line.rstrip()}")
        code = process.wait()
        reader.join()
        with guard:
            running.discard(process)
        if code == 0:
            return None
        stop()
        return job, code, "".join(errors).strip()

    def stop() -> None:
        stopping.set()
        with guard:
            for process in running:
                process.terminate()

    ordered = sorted(jobs, key=lambda job: (job.seed, -job.cost))
    with ThreadPoolExecutor(max_workers=workers_for(len(jobs))) as pool:
        futures = [pool.submit(one, job) for job in ordered]
        try:
            failures = [failure for future in futures if (failure := future.result()) is not None]
        except BaseException:
            stop()
            raise
    # Those that `stop` terminated come with a negative code and say nothing of the cause.
    failures.sort(key=lambda failure: failure[1] < 0)
    for job, code, said in failures:
        last = said.splitlines()[-1] if said else f"exit code {code}"
        if code == 2:
            raise InputError(last)
        raise RunFailed(
            f"demo: {job.method} of seed {job.seed} failed: {last}; finished methods are kept, and the same command "
            "goes on with the others"
        )
