"""What a run meets: folders it may not write, files that vanish or are none, odd streams, clocks that jump."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import every_kind
import preceptor
from invariant.recipes import quiet
from preceptor.cli import main
from preceptor.errors import InputErrors, RunFailed
from preceptor.recipe import Recipe, parse_recipe
from preceptor.running.refusals import refuse_damaged
from preceptor.system import files, hashes
from small_disk import small_disk

NOBODY = 65534


def kd_recipe(folder: Path, runs_dir: Path | None = None, **training: Any) -> Recipe:
    """A teacher from a config, and a training on it."""
    raw = every_kind.document(folder, runs_dir or folder / "runs")
    raw["stages"] = {name: raw["stages"][name] for name in ("teacher", "kd")}
    raw["stages"]["kd"]["training"] = {**raw["stages"]["kd"]["training"], **training}
    every_kind.write(folder, raw)
    return parse_recipe(raw, folder=folder)


def as_nobody(act: Callable[[], int], folder: Path) -> str:
    """What `act` prints in a child that is not root: root may read and write everything. Skips where nobody can be."""
    for each in (folder, *folder.parents):
        if not each.stat().st_mode & 0o001 and each != Path("/"):
            try:
                each.chmod(each.stat().st_mode | 0o011)
            except OSError:
                pytest.skip(f"needs {each} to be entered by others")
    out = folder / "said"
    child = os.fork()
    if child == 0:
        code = 99
        try:
            with out.open("w") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            code = act()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return f"{os.waitstatus_to_exitcode(status)} {out.read_text()}"


# --- folders and files that may not be written or read ----------------------------------------------------------


def test_a_runs_dir_that_may_not_be_written(tmp_path: Path) -> None:
    kd_recipe(tmp_path)
    (tmp_path / "runs").mkdir(mode=0o555)
    said = as_nobody(lambda: main(["run", str(tmp_path / "recipe.yaml")]), tmp_path)
    assert said == (
        f"2 error: {tmp_path}/runs/r: the run directory cannot be written (Permission denied); set runs_dir to a "
        "folder that can, with --out DIR or runs_dir=DIR\n"
    )
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("what", ["data", "model"])
def test_a_file_that_may_not_be_read(what: str, tmp_path: Path) -> None:
    raw = every_kind.document(tmp_path, tmp_path / "out" / "runs")
    raw["stages"] = {name: raw["stages"][name] for name in ("teacher", "kd")}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    if what == "model":
        raw["stages"]["kd"]["model"] = str(tmp_path / "model")
    every_kind.write(tmp_path, raw)
    closed = tmp_path / ("general.jsonl" if what == "data" else "model/config.json")
    closed.chmod(0o000)
    (tmp_path / "out").mkdir(mode=0o777)
    (tmp_path / "out").chmod(0o777)
    said = as_nobody(lambda: main(["run", str(tmp_path / "recipe.yaml")]), tmp_path)
    assert said.startswith("2 error: ")
    assert "cannot be read (Permission denied)" in said
    assert ("data.general.path" if what == "data" else "stages.kd.model") in said
    assert "Traceback" not in said
    assert not list((tmp_path / "out").iterdir()), "nothing is written"


def test_a_disk_that_becomes_read_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As after an error of the device: what is done stays, and once it is writable the run goes on."""
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        kd_recipe(tmp_path, disk.folder / "runs")
        path = str(tmp_path / "recipe.yaml")
        assert main(["run", path, "--only", "teacher"]) == 0
        before = every_kind.outcome(disk.folder / "runs/r")
        capfd.readouterr()
        disk.writable(False)
        assert main(["run", path]) == 2
        assert "the run directory cannot be written (Read-only file system)" in capfd.readouterr().err
        disk.writable(True)
        assert main(["run", path]) == 0
        after = every_kind.outcome(disk.folder / "runs/r")
    assert before.items() <= after.items()


def test_one_that_becomes_so_while_a_stage_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that fails takes the traceback's file too; the cause is said all the same."""
    made = kd_recipe(tmp_path)
    failing: list[str] = []
    write = files._write_aside

    def fails(path: Path, data: bytes) -> None:
        if failing:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        write(path, data)

    monkeypatch.setattr(files, "_write_aside", fails)
    with pytest.raises(RunFailed) as caught:
        preceptor.run(made, log=lambda line: failing.append(line) if "kd: sft, started" in line else None)
    kd = tmp_path / "runs/r/kd"
    assert str(caught.value).startswith(f"stage kd failed: OSError: [Errno 30] Read-only file system: '{kd}/")
    assert str(caught.value).endswith(f"once the cause is mended `{made.command}` goes on from there")
    failing.clear()
    monkeypatch.setattr(files, "_write_aside", write)
    assert preceptor.run(made, log=quiet)["stages"]["kd"]["status"] == "done"


# --- what is no file, or no longer the one that was checked ------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def folder_of_nothing(path: Path) -> None:
    path.mkdir()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (fifo, "is a pipe, which can be read once at most; write what it gives to a file"),
        (bound_socket, "is a socket, which can be read once at most; write what it gives to a file"),
        (device, "is a device, which can be read once at most; write what it gives to a file"),
        (loop, "does not exist"),
        (folder_of_nothing, "is a folder without files to read"),
    ],
)
@pytest.mark.parametrize("place", ["data", "model"])
def test_what_is_no_file_is_refused_and_never_waited_for(
    make: Callable[[Path], None], words: str, place: str, tmp_path: Path
) -> None:
    raw = every_kind.document(tmp_path, tmp_path / "runs")
    raw["stages"] = {name: raw["stages"][name] for name in ("teacher", "kd")}
    odd = tmp_path / "odd.jsonl"
    make(odd)
    if place == "data":
        raw["data"]["general"]["path"] = str(odd)
    else:
        raw["stages"]["kd"]["model"] = str(odd)
    with pytest.raises(InputErrors) as caught:
        preceptor.run(parse_recipe(raw, folder=tmp_path), log=quiet)
    assert words in str(caught.value)
    assert "odd.jsonl" in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("how", ["gone", "changed", "touched"])
def test_data_that_changes_while_an_earlier_stage_runs(how: str, tmp_path: Path) -> None:
    made = kd_recipe(tmp_path)
    data = tmp_path / "general.jsonl"
    text = data.read_text()

    def meanwhile(line: str) -> None:
        if line.startswith("teacher: done"):
            if how == "gone":
                data.rename(tmp_path / "elsewhere")
            else:
                data.write_text(text.upper() if how == "changed" else text)

    if how == "touched":  # the same content at another time
        preceptor.run(made, log=meanwhile)
        return
    with pytest.raises(RunFailed) as caught:
        preceptor.run(made, log=meanwhile)
    what = "cannot be read any more (No such file or directory)" if how == "gone" else "has changed"
    assert str(caught.value) == (
        f"stage kd was not begun: {data} {what} since this run began; undo that, or take it as it is: what is "
        f"finished is kept, and `{made.command}` goes on"
    )
    assert not (tmp_path / "runs/r/kd").exists()
    assert (tmp_path / "runs/r/teacher/stage.json").exists()
    (tmp_path / "general.jsonl").write_text(text)
    assert preceptor.run(made, log=quiet)["stages"]["kd"]["status"] == "done"


def test_a_file_that_changes_while_it_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "growing.jsonl"
    path.write_text("a\n")
    real = hashes.sha256_file

    def and_it_grows(each: Path) -> str:
        with path.open("a") as stream:
            stream.write("b\n")
        return real(each)

    monkeypatch.setattr(hashes, "sha256_file", and_it_grows)
    with pytest.raises(preceptor.errors.InputError, match="changes while it is read; wait until it is whole"):
        hashes.Hashes(tmp_path / "kept").file(path)


def remembered(path: Path, store: Path) -> str:
    known = hashes.Hashes(store)
    found = known.file(path)
    known.save()
    return found


def test_a_large_file_that_was_replaced_is_not_taken_for_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size, with its time set back, in place or put in its place."""
    monkeypatch.setattr(hashes.Hashes, "_LARGE", 1)
    monkeypatch.setattr(hashes, "_RACE", 0)
    path, store = tmp_path / "weights", tmp_path / "kept"
    path.write_bytes(b"one")
    then = path.stat()
    found = [remembered(path, store)]
    path.write_bytes(b"two")
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    found.append(remembered(path, store))
    (tmp_path / "other").write_bytes(b"six")
    os.utime(tmp_path / "other", ns=(then.st_atime_ns, then.st_mtime_ns))
    (tmp_path / "other").rename(path)
    found.append(remembered(path, store))
    assert len(set(found)) == 3


def test_a_model_of_an_earlier_stage_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on checks what it reads; ninety gigabytes that nobody has touched are not read for it again."""
    monkeypatch.setattr(hashes.Hashes, "_LARGE", 0)
    monkeypatch.setattr(hashes, "_RACE", -(10**12))
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / "weights").write_bytes(b"x" * 100)
    (tmp_path / "teacher").mkdir()
    files.publish_directory(tmp_path / "aside", tmp_path / "teacher" / "model")
    read: list[Path] = []
    real = hashes.sha256_file
    monkeypatch.setattr(hashes, "sha256_file", lambda path: (read.append(path), real(path))[1])
    recipe: Any = SimpleNamespace(stage_reads=lambda stage: ["teacher"])
    for _ in range(2):
        known = hashes.Hashes(tmp_path / ".hashes.json")
        refuse_damaged(recipe, tmp_path, ["kd"], known)
        known.save()
    assert read == [tmp_path / "teacher" / "model" / "weights"]
    (tmp_path / "teacher" / "model" / "weights").write_bytes(b"y" * 100)
    with pytest.raises(InputErrors, match="copy the folder again, or make it anew with --redo teacher"):
        refuse_damaged(recipe, tmp_path, ["kd"], hashes.Hashes(tmp_path / ".hashes.json"))


def test_a_file_that_is_a_moment_old_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may change once more within what the file system takes for one time; so may one from a future clock."""
    monkeypatch.setattr(hashes.Hashes, "_LARGE", 1)
    path, store = tmp_path / "weights", tmp_path / "kept"
    path.write_bytes(b"one")
    remembered(path, store)
    assert not store.exists()
    monkeypatch.setattr(time, "time_ns", lambda: path.stat().st_ctime_ns + 3_000_000_000)
    remembered(path, store)
    assert list(json.loads(store.read_text())) == [str(path)]


# --- clocks -----------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day ahead and back at every look, between stop and resume too: no duration is negative or a day long."""
    preceptor.run(kd_recipe(tmp_path, tmp_path / "steady"), log=quiet)
    looks = [0]
    real = time.time

    def jumping() -> float:
        looks[0] += 1
        return real() + (86_400 if looks[0] % 2 else -86_400)

    monkeypatch.setattr(time, "time", jumping)
    said: list[str] = []
    made = kd_recipe(tmp_path, tmp_path / "jumping")
    preceptor.run(made, only="teacher", log=said.append)
    for each in (tmp_path / "jumping").rglob("*"):
        os.utime(each, (real() + 86_400, real() + 86_400))
    result = preceptor.run(made, log=said.append)
    assert looks[0]
    assert every_kind.outcome(tmp_path / "jumping/r") == every_kind.outcome(tmp_path / "steady/r")
    numbers = [stage["seconds"] for stage in result["stages"].values()]
    for line in (tmp_path / "jumping/r/kd/metrics.jsonl").read_text().splitlines():
        numbers += [value for key, value in json.loads(line).items() if "second" in key or "runtime" in key]
    assert len(numbers) > 4
    assert all(0 <= number < 80_000 for number in numbers), numbers
    assert not [line for line in said if "-" in line.partition(" s left")[0].rpartition("  ")[2] and " left" in line]


# --- streams, home, working folder ------------------------------------------------------------------------------


def launched(arguments: list[str], *, shell: str = "", cwd: Path | None = None, **env: str) -> Any:
    """`preceptor ARGUMENTS` in a process of its own; `shell` is what follows it in a shell's line."""
    command = f'exec "$0" -m preceptor "$@" {shell}'
    return subprocess.run(
        ["sh", "-c", command, sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        timeout=250,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_that_takes_nothing() -> None:
    done = launched(["--version"], shell="> /dev/full")
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "error: standard output cannot be written (No space left on device); mend that, and run the same command "
        "again\n"
    )


@pytest.mark.parametrize("shell", ["2>&-", "<&- >&- 2>&-"])
def test_closed_streams(shell: str, tmp_path: Path) -> None:
    """A file that is opened must not take their number: what a library prints would go into it."""
    import toy_runs

    toy_runs.whole_run(tmp_path / "run")
    done = launched(["report", str(tmp_path / "run")], shell=shell)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/report/report.html").read_text().rstrip().endswith("</html>")
    if ">&-" not in shell.replace("2>&-", ""):
        assert b"report.html" in done.stdout


def test_a_terminal_that_lacks_our_signs(tmp_path: Path) -> None:
    import toy_runs

    odd = tmp_path / "läuft"
    toy_runs.whole_run(odd)
    done = launched(["report", str(odd), "--json"], PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("ascii"))["title"] == "läuft"
    done = launched(["--help"], PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0
    done = launched(["run", "nirgends…ä.yaml"], PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 2
    assert b"there is no such file" in done.stderr
    done.stderr.decode("ascii")


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = 'cd "$1" && rmdir "$1" && exec "$0" -m preceptor run recipe.yaml'
    done = subprocess.run(["sh", "-c", command, sys.executable, str(gone)], capture_output=True, timeout=250)
    assert done.returncode == 2
    assert done.stderr.decode() == "error: recipe.yaml: there is no such file; give the path of a recipe (YAML)\n"


def test_no_home_no_caches_no_temporary_folder(tmp_path: Path) -> None:
    """All it needs is the run directory; what libraries keep elsewhere they do without."""
    kd_recipe(tmp_path)
    closed = "/proc/nobody-can-write-here"
    places = ("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCH_HOME", "TRITON_CACHE_DIR")
    done = launched(["run", str(tmp_path / "recipe.yaml")], **dict.fromkeys(places, closed), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert (tmp_path / "runs/r/report/report.html").exists(), done.stderr.decode()[-2000:]
    assert b"Traceback" not in done.stderr


def test_progress_that_nobody_can_take_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log on a full disk, a terminal that is gone."""

    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        def flush(self) -> None: ...

        def isatty(self) -> bool:
            return False

    from preceptor.cli.output import progress

    monkeypatch.setattr(sys, "stderr", Gone())
    progress("still at work")
