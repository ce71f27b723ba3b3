"""Jobs in processes of their own: their progress arrives, and the first failure stops the rest with its cause."""

from __future__ import annotations

import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from preceptor.errors import InputError, RunFailed
from preceptor.pocket.side_by_side import Job, in_order, run_side_by_side, workers_for
from preceptor.system.interrupts import Interrupted

WORKER = """
import os, sys, time
recipe, method = sys.argv[1:]
print(method, "threads", os.environ["OMP_NUM_THREADS"], flush=True)
if method == "wrong": print("data.public: is missing", file=sys.stderr); raise SystemExit(2)
if method == "broken": print("Traceback", file=sys.stderr); print("it broke", file=sys.stderr); raise SystemExit(1)
if method == "kept":
    import signal
    signal.signal(signal.SIGTERM, lambda *_: (print("kept: its checkpoint", flush=True), sys.exit(1)))
    print("ready", flush=True)
if method.startswith("slow") or method == "kept": time.sleep(60)
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "stand_in_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "stand_in_worker"


def jobs(*methods: str) -> list[Job]:
    return [Job(f"43/{name}", Path("recipe.yaml"), name, cost=len(methods) - i) for i, name in enumerate(methods)]


def test_every_job_runs_with_one_thread_and_its_progress_arrives(worker: str) -> None:
    lines: list[str] = []
    run_side_by_side(jobs("a", "b", "c"), lines.append, module=worker)
    assert sorted(lines) == [f"43/{name}  {name} threads 1" for name in "abc"]


def test_a_failure_stops_the_others_and_gives_its_cause(worker: str) -> None:
    began = time.monotonic()
    with pytest.raises(RunFailed, match="43/broken failed: it broke; finished stages are kept"):
        run_side_by_side(jobs("slow", "broken", "slower"), lambda line: None, module=worker)
    assert time.monotonic() - began < 30


def test_ctrl_c_waits_for_checkpoints_and_says_how_to_go_on(worker: str) -> None:
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if line.endswith("ready"):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with pytest.raises(Interrupted, match="what is finished is kept, and the same command goes on") as stop:
        run_side_by_side(jobs("kept"), log, module=worker)
    assert stop.value.code == 130
    assert lines[-1] == "43/kept  its checkpoint"  # the name of its stage is not said twice


def test_wrong_input_stays_wrong_input(worker: str) -> None:
    with pytest.raises(InputError, match=r"^data\.public: is missing$"):
        run_side_by_side(jobs("wrong"), lambda line: None, module=worker)


def test_a_job_starts_when_what_it_waits_for_has_ended(worker: str) -> None:
    lines: list[str] = []
    first, second, third = jobs("a", "b", "c")
    waiting = [replace(first, after=(second.name, third.name)), replace(second, after=(third.name,)), third]
    run_side_by_side(waiting, lines.append, module=worker)
    assert [line.split()[1] for line in lines] == ["c", "b", "a"]


def test_the_longest_chain_comes_first_within_a_phase() -> None:
    short, root = Job("short", Path("r"), "short", 3.0), Job("root", Path("r"), "root", 1.0)
    leaf, later = Job("leaf", Path("r"), "leaf", 2.5, ("root",)), Job("later", Path("r"), "later", 9.0, phase=1)
    assert [job.name for job in in_order([later, short, leaf, root])] == ["root", "short", "leaf", "later"]


def test_at_least_two_at_a_time_and_never_more_than_jobs() -> None:
    assert workers_for(1) == 1
    assert workers_for(2) == 2
    assert 2 <= workers_for(100) <= 100
    assert sys.executable
