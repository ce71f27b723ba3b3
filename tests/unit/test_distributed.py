"""Which process this is, how `preceptor run` starts itself on several GPUs, and with what exit code that ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from preceptor import cli, distributed
from preceptor.distributed import LeaderEnded
from preceptor.running.launching import launch, processes_to_start

RECIPE = "{name: r, data: {a: {path: a.jsonl}}, stages: {s: {kind: sft, model: m, data: a}}}"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_which_process_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.from_main(lambda: 7) == 7
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (3, 4, False)


def test_asking_needs_no_torch() -> None:
    code = "import sys, preceptor.distributed as d; d.is_main(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=240).returncode == 0


def test_one_process_for_each_visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for visible, processes in ((0, 1), (1, 1), (8, 8)):
        monkeypatch.setattr("torch.cuda.device_count", lambda count=visible: count)
        assert processes_to_start() == processes
    for name in ("RANK", "LOCAL_RANK"):
        with monkeypatch.context() as launched:
            launched.setenv(name, "0")
            assert processes_to_start() == 1


def test_run_starts_itself_under_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    Path("no.yaml").write_text("{name: r, stages: {s: {kind: init, config: {model_type: llama}}}}")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    given: list[list[str]] = []
    monkeypatch.setattr("preceptor.cli.run.launch", lambda arguments: given.append(arguments) or 5)
    ran: list[str] = []
    nothing = {"stages": {}, "directory": ""}
    monkeypatch.setattr("preceptor.runs.run", lambda recipe, **_: ran.append(recipe.name) or nothing)

    assert cli.main(["run", "r.yaml", "seed=3", "--only", "s", "--json"]) == 5
    assert given == [
        ["--standalone", "--nproc_per_node", "4", "-m", "preceptor", "run", "r.yaml", "seed=3", "--only", "s", "--json"]
    ]
    assert not ran
    assert "4 GPUs are visible: 4 processes start; CUDA_VISIBLE_DEVICES chooses fewer" in capsys.readouterr().err
    assert cli.main(["run", "r.yaml", "stages.s.model={path: m, device_map: auto}"]) == 5
    assert given[1][2] == "1"
    assert "4 GPUs are visible: 1 process starts (a device_map uses them all);" in capsys.readouterr().err
    assert cli.main(["run", "r.yaml", "seed=x"]) == 2  # a wrong recipe is told before any process starts
    assert len(given) == 2
    assert cli.main(["run", "no.yaml"]) == 0  # nothing to train
    assert (len(given), len(ran)) == (2, 1)


@pytest.mark.parametrize("codes", [(0, 0), (2, 0), (0, 3)])
def test_the_exit_code_is_that_of_the_process_that_failed(
    codes: tuple[int, int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import os, sys; print('hello'); sys.exit({list(codes)}[int(os.environ['RANK'])])")
    before = signal.getsignal(signal.SIGINT)
    assert launch(["--standalone", "--nproc_per_node", "2", str(script)]) == max(codes)
    assert signal.getsignal(signal.SIGINT) is before
    out, err = capfd.readouterr()
    assert "hello" in out
    assert "Traceback" not in err
    assert "exitcode" not in err


def test_another_process_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    monkeypatch.setenv("RANK", "1")

    def ended(*_: object, **__: object) -> None:
        raise LeaderEnded(2)

    monkeypatch.setattr("preceptor.runs.run", ended)
    assert cli.main(["run", "r.yaml", "--json"]) == 2
    done = {"stages": {"s": {"status": "done", "seconds": 1.0}}, "directory": "d"}
    monkeypatch.setattr("preceptor.runs.run", lambda *_, **__: done)
    assert cli.main(["run", "r.yaml", "--json"]) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["run", "r.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == done


def test_a_launcher_must_say_where_the_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["run", "r.yaml"]) == 2
    assert capsys.readouterr().err == (
        "error: WORLD_SIZE is 2, but the processes cannot find each other (environment variable MASTER_ADDR expected, "
        "but not set); start them with torchrun or accelerate launch, or unset WORLD_SIZE\n"
    )


def test_one_of_several_processes_ends_with_all_it_has_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are waited for and exit functions run, but nothing is torn down: an object's end would say so."""
    code = """
import atexit, threading, time, torch
from preceptor.distributed import end
class Torn:
    def __del__(self): print("torn down", flush=True)
torn = Torn()
atexit.register(print, "exit function")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
print("done")
end(3)
"""
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout.split("\n")) == (3, ["done", "thread", "exit function", ""])
    monkeypatch.setenv("WORLD_SIZE", "1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert (done.returncode, "torn down" in done.stdout) == (3, True)
