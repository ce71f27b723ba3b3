"""What a first and a second signal do: to a block that listens, to a training, and to processes that were launched."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from invariant.trainers import trainer, weights
from preceptor.system import interrupts
from preceptor.system.interrupts import Interrupted, deferred, listening
from preceptor.training.checkpoints import UNSCHEDULED, checkpoint_steps
from same_results import log_lines, same, same_checkpoint


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # a signal is taken between two bytecodes


def silent(line: str) -> None:
    pass


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Ctrl-C as in a terminal; what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# --- a block that listens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_stops_at_once_where_nothing_defers_it(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped, listening(silent):
        send(number)
    assert stopped.value.code == code
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert not isinstance(stopped.value, Exception), "or whoever handles errors would go on"
    assert signal.getsignal(number) is before
    assert interrupts.asked() == 0, "a later training would stop"


def test_the_first_is_noted_where_it_is_deferred_and_the_second_stops() -> None:
    said: list[str] = []
    with pytest.raises(Interrupted) as stopped, listening(said.append), deferred():  # noqa: PT012
        assert interrupts.asked() == 0
        send(signal.SIGTERM)
        assert interrupts.asked() == signal.SIGTERM
        until = time.monotonic() + 60
        while not said and time.monotonic() < until:
            time.sleep(0.01)
        assert said == ["SIGTERM: stops after this step and a checkpoint; a second one stops at once"]
        send(signal.SIGINT)
        pytest.fail("went on after the second")
    assert stopped.value.number == signal.SIGINT


def test_one_that_nobody_acts_upon_is_raised_in_the_end() -> None:
    with pytest.raises(Interrupted), listening(silent):  # noqa: PT012
        with deferred():
            send(signal.SIGINT)
        pytest.fail("went on")


def test_an_error_on_the_way_is_that_error() -> None:
    with pytest.raises(ZeroDivisionError), listening(silent), deferred():  # noqa: PT012
        send(signal.SIGINT)
        _ = 1 / 0


def test_handlers_are_the_users_own_again() -> None:
    def mine(number: int, frame: Any) -> None:
        heard.append(number)

    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, mine)
    try:
        with listening(silent), listening(silent):  # a second one changes nothing
            assert signal.getsignal(signal.SIGTERM) is not mine
        assert signal.getsignal(signal.SIGTERM) is mine
        send(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts what runs in the background
    try:
        with listening(silent):
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_signals_alone() -> None:
    found: list[Any] = []

    def work() -> None:
        with listening(silent):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def test_a_data_worker_that_the_same_signal_ended_fails_no_step() -> None:
    """torch raises from SIGCHLD what became of a worker; launchers signal whole groups."""

    def failed(number: int, frame: Any) -> None:
        raise RuntimeError("DataLoader worker is killed by signal")

    before = signal.signal(signal.SIGCHLD, failed)
    try:
        with pytest.raises(Interrupted), listening(silent), deferred():  # noqa: PT012
            send(signal.SIGTERM)
            send(signal.SIGCHLD)
        assert signal.getsignal(signal.SIGCHLD) is failed
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has threads")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_data_worker_says_nothing_and_goes_on(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to all of a group, and workers have their parent's handlers."""

    def say(line: str) -> None:
        with (tmp_path / "said").open("a") as stream:
            stream.write(f"{os.getpid()}\n")

    with pytest.raises(Interrupted), listening(say), deferred():  # noqa: PT012
        child = os.fork()
        if not child:
            with suppress(BaseException):
                send(signal.SIGINT)
                time.sleep(0.2)
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert not (tmp_path / "said").exists()
        send(signal.SIGINT)
        wait_for((tmp_path / "said").exists)


# --- a training -------------------------------------------------------------------------------------------------


class At(TrainerCallback):
    """Sends signals, and notes what the random generators give, at the begin of steps."""

    def __init__(self, step: int | None = None, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number
        self.drawn: dict[int, tuple[float, float, float]] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.drawn[state.global_step] = (random.random(), float(np.random.rand()), float(torch.rand(())))
        if state.global_step + 1 == self.step:
            send(self.number)


def interrupted(folder: Path, step: int, **settings: Any) -> None:
    """Trains until the signal that comes in a step stops it."""
    with pytest.raises(Interrupted), listening(silent):
        trainer(folder, At(step), **settings).train()


CASES: dict[str, tuple[list[int], dict[str, Any]]] = {
    "off the schedule": ([2, 7], {}),
    "at an epoch's end, on the schedule": ([3], {}),
    "at an epoch's end, off the schedule": ([3], {"save_steps": 5}),
    "logged and measured by epoch": (
        [2, 6],
        {"logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 1},
    ),
    "one kept": ([2, 4, 5], {"save_total_limit": 1, "eval_strategy": "steps", "eval_steps": 2}),
    "the best kept": (
        [2, 5],
        {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_steps": 3,
            "learning_rate": 0.5,  # gets worse at once: the best step is the first, of which nothing is kept
            "load_best_model_at_end": True,
            "save_total_limit": 2,
        },
    ),
    "the best only": ([2, 5], {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best",
                               "metric_for_best_model": "loss", "greater_is_better": False, "learning_rate": 0.5}),
    "the last step": ([9], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_signal_changes_no_number(case: str, tmp_path: Path) -> None:
    stops, settings = CASES[case]
    draws = At()
    whole = trainer(tmp_path / "whole", draws, **settings)
    whole.train()
    folder = tmp_path / "parts/checkpoints"
    for number, step in enumerate(stops):
        with pytest.raises(Interrupted) as stopped, listening(silent):
            trainer(tmp_path / "parts", At(step), **settings).train(resume_from_checkpoint=number > 0)
        assert str(stopped.value) == f"step {step} of 9 is done and its checkpoint written"
        assert stopped.value.code == 143
        assert max(checkpoint_steps(folder)) == step
    again = At()
    random.seed(5)  # another process
    np.random.seed(5)
    torch.manual_seed(5)
    resumed = trainer(tmp_path / "parts", again, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert list(again.drawn) == list(range(stops[-1], 9))
    assert again.drawn == {step: draws.drawn[step] for step in again.drawn}, "python, numpy, torch"
    assert log_lines(tmp_path / "parts") == log_lines(tmp_path / "whole")
    same(weights(resumed.model), weights(whole.model))
    expected, got = checkpoint_steps(tmp_path / "whole/checkpoints"), checkpoint_steps(folder)
    left = [step for step, path in got.items() if (path / UNSCHEDULED).exists()]
    # It goes with the next one that the schedule asks for.
    assert left == ([stops[-1]] if max(expected) < stops[-1] else [])
    assert [step for step in got if step not in left] == list(expected)
    for number in expected:
        same_checkpoint(got[number], expected[number])


def test_without_scheduled_checkpoints_one_is_written_all_the_same(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", At(), save_strategy="no")
    whole.train()
    interrupted(tmp_path / "parts", 4, save_strategy="no")
    resumed = trainer(tmp_path / "parts", At(), save_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 9
    same(weights(resumed.model), weights(whole.model))


def test_the_second_signal_does_not_wait_for_the_step(tmp_path: Path) -> None:
    class Twice(At):
        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                send(signal.SIGINT)

    with pytest.raises(Interrupted) as stopped, listening(silent):
        trainer(tmp_path, Twice(5)).train()
    assert str(stopped.value) == ""
    assert list(checkpoint_steps(tmp_path / "checkpoints")) == [3]


def test_without_a_run_a_training_leaves_signals_alone(tmp_path: Path) -> None:
    """Whoever uses the trainer alone has the handlers that are theirs."""
    with pytest.raises(KeyboardInterrupt) as stopped:
        trainer(tmp_path, At(4, signal.SIGINT)).train()
    assert not isinstance(stopped.value, Interrupted)


def test_measuring_at_the_start_is_not_done_again(tmp_path: Path) -> None:
    settings = {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 4}
    trainer(tmp_path / "whole", At(), **settings).train()
    interrupted(tmp_path / "parts", 2, **settings)
    trainer(tmp_path / "parts", At(), **settings).train(resume_from_checkpoint=True)
    assert log_lines(tmp_path / "parts") == log_lines(tmp_path / "whole")


# --- launched processes -----------------------------------------------------------------------------------------

_RANK = """
import os, signal, sys, time
from pathlib import Path
from preceptor.distributed import end_with_launcher
end_with_launcher()
def end(number, frame):
    time.sleep(0.5)
    Path(f"ended-{os.environ['RANK']}").write_text(str(number))
    sys.exit(128 + number)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
Path(f"ready-{os.environ['RANK']}").write_text("")
time.sleep(100)
"""
_LAUNCH = """
import signal, sys
from preceptor.running.launching import launch
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(launch(["--standalone", "--nproc_per_node", "2", "rank.py"]))
"""


def launched(folder: Path) -> subprocess.Popen[str]:
    """Two processes that wait for a signal, under a launcher."""
    (folder / "rank.py").write_text(_RANK)
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in ranks}
    process = subprocess.Popen(
        [sys.executable, "-c", _LAUNCH], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(list(folder.glob("ready-*"))) == 2 or process.poll() is not None)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_launcher_passes_a_signal_on_and_waits(number: int, code: int, tmp_path: Path) -> None:
    process = launched(tmp_path)
    process.send_signal(number)
    _, said = process.communicate(timeout=240)
    assert process.returncode == code
    assert {path.name: path.read_text() for path in tmp_path.glob("ended-*")} == {
        "ended-0": str(int(number)), "ended-1": str(int(number)),
    }  # fmt: skip
    assert "Traceback" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent has died")
def test_processes_end_with_a_launcher_that_was_killed(tmp_path: Path) -> None:
    process = launched(tmp_path)
    process.kill()
    process.wait(240)
    wait_for(lambda: len(list(tmp_path.glob("ended-*"))) == 2)
    assert {path.read_text() for path in tmp_path.glob("ended-*")} == {str(int(signal.SIGTERM))}


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
