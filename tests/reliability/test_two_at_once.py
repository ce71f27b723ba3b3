"""Two runs on one directory: the lock goes with the process, and with nothing that the process has started."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import toy_runs
from preceptor.cli import main
from preceptor.errors import InputError
from preceptor.evaluation.endpoint_cache import EndpointCache
from preceptor.running.lock import LOCK, RunLock
from preceptor.system import exclusive

HOLDS = """
import os, sys, time
from pathlib import Path
from preceptor.running.lock import RunLock
from preceptor.evaluation.endpoint_cache import EndpointCache
with RunLock(Path(sys.argv[1])), EndpointCache(Path(sys.argv[1]) / "replies.jsonl") as cache:
    cache.add("k", {})
    child = os.fork()
    if child == 0:
        time.sleep(300)
        os._exit(0)
    import subprocess
    program = subprocess.Popen(["sleep", "300"], close_fds=False)
    print(child, program.pid, flush=True)
    time.sleep(300)
"""


@contextmanager
def holder(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process that holds the folder, with a forked child and a program that it started."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    children: list[int] = []
    try:
        assert process.stdout is not None
        children = [int(each) for each in process.stdout.readline().split()]
        yield process, children
    finally:
        process.kill()
        process.wait()
        for each in children:
            os.kill(each, signal.SIGKILL)


def test_a_lock_ends_with_a_killed_process_whatever_it_leaves_running(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, children):
        with pytest.raises(InputError, match=f"in use by process {process.pid} on "):
            RunLock(tmp_path).__enter__()
        with pytest.raises(InputError, match="in use by another process"):
            EndpointCache(tmp_path / "replies.jsonl").__enter__()
        process.kill()
        process.wait()
        assert all(Path(f"/proc/{each}").exists() for each in children), "they outlive it"
        assert (tmp_path / LOCK).read_text().startswith(f"process {process.pid} on "), "a name alone locks nothing"
        with RunLock(tmp_path), EndpointCache(tmp_path / "replies.jsonl"):
            assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert (tmp_path / LOCK).read_text() == ""


def test_a_child_that_is_forked_gives_nothing_back(tmp_path: Path) -> None:
    """It closes its share of the lock, which must not unlock its parent's."""
    with RunLock(tmp_path):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(InputError, match="in use"):
            RunLock(tmp_path).__enter__()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    said: list[str] = []
    with RunLock(tmp_path, said.append), RunLock(tmp_path, said.append):
        pass
    assert said[0] == (
        f"{tmp_path}: its file system cannot lock files ({os.strerror(number)}), so that nothing keeps a second "
        "process out; start one at a time"
    )
    with EndpointCache(tmp_path / "replies.jsonl") as cache:
        cache.add("k", {})


def test_another_error_of_the_lock_is_no_missing_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(handle: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    before = {each.name for each in Path("/proc/self/fd").iterdir()}
    with pytest.raises(InputError, match=r"the run directory cannot be written \(Input/output error\)"):
        RunLock(tmp_path / "run").__enter__()
    assert not (tmp_path / "run").exists()
    assert {each.name for each in Path("/proc/self/fd").iterdir()} == before
    assert not exclusive._held


def test_two_reports_at_once(tmp_path: Path) -> None:
    """Each file is written whole, so whoever comes last has written the page, and nobody reads half of one."""
    toy_runs.whole_run(tmp_path / "run")
    command = [sys.executable, "-m", "preceptor", "report", str(tmp_path / "run")]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    page = tmp_path / "run/report/report.html"
    while any(each.poll() is None for each in both):
        if page.exists():
            assert page.read_text().rstrip().endswith("</html>")
        time.sleep(0.01)
    said = [each.communicate()[1] for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert not list((tmp_path / "run/report").rglob(".*"))
    assert page.read_text().rstrip().endswith("</html>")


def test_two_evaluations_into_one_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    arguments: Any = ["evaluate", str(tmp_path / "model"), "--general", str(tmp_path / "rows.jsonl")]
    with RunLock(tmp_path / "ev"):
        assert main([*arguments, "--out", str(tmp_path / "ev")]) == 2
    assert "ev: the run directory is in use by process" in capfd.readouterr().err
