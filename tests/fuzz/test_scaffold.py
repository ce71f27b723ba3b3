"""The check of a parser's promise sees each way of breaking it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz.scaffold import Broken, Target, cases, names, promise
from preceptor.errors import InputError, InputErrors, RunFailed


def target(check: Callable[[bytes, Path], object]) -> Target:
    return Target(name="made", check=check, seeds=[b""], seconds=0.3)


def raising(error: BaseException) -> Target:
    def check(data: bytes, folder: Path) -> None:
        raise error

    return target(check)


def test_a_value_or_an_input_error_is_fine(tmp_path: Path) -> None:
    assert promise(target(lambda data, folder: (folder / "x").write_bytes(data)), b"x", tmp_path)
    assert not promise(raising(InputError("wrong")), b"", tmp_path)
    assert not promise(raising(InputErrors(["one", "two"])), b"", tmp_path)


@pytest.mark.parametrize("error", [RunFailed("x"), ValueError("x"), RecursionError(), MemoryError(), SystemExit(1)])
def test_any_other_error_goes_through(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        promise(raising(error), b"", tmp_path)


class Raw(InputError):  # noqa: N818 - a wrong one
    """As if what errors escape were printed raw."""

    def __str__(self) -> str:
        return str(self.said)

    def __init__(self, said: str) -> None:
        self.said = said


@pytest.mark.parametrize(
    "said",
    ["a\x1b[31mb", "a\nb", "a\rb", "a\x9bb", "a\u202eb", "a\u2028b", "a\ud800b", "a\0b", "a\tb", "", " ", "a" * 2001],
)
def test_what_an_error_may_say(tmp_path: Path, said: str) -> None:
    with pytest.raises(Broken):
        promise(raising(Raw(said)), b"", tmp_path)


def _endless(data: bytes, folder: Path) -> None:
    while True:
        pass


OUTSIDE: list[Callable[[Path], object]] = [
    lambda outside: (outside / "new").write_text("x"),
    lambda outside: (outside / "old").open("a"),
    lambda outside: (outside / "old").open("r+"),
    lambda outside: os.open(outside / "new", os.O_CREAT),
    lambda outside: (outside / "old").unlink(),
    lambda outside: (outside / "old").rename(outside / "new"),
    lambda outside: (outside / "folder").mkdir(),
    lambda outside: shutil.rmtree(outside),
    lambda outside: (outside / "old").chmod(0o777),
    lambda outside: subprocess.run(["true"], check=False),
    lambda outside: os.system("true"),
    lambda outside: socket.create_connection(("127.0.0.1", 9), timeout=0.1),
]


@pytest.mark.parametrize("act", OUTSIDE)
def test_nothing_leaves_the_folder(tmp_path: Path, act: Callable[[Path], object]) -> None:
    (tmp_path / "in").mkdir()
    outside = tmp_path / "out"
    outside.mkdir()
    (outside / "old").write_text("kept")
    with pytest.raises(Broken):
        promise(target(lambda data, folder: act(outside)), b"", tmp_path / "in")
    assert [path.name for path in outside.iterdir()] == ["old"]
    assert (outside / "old").read_text() == "kept"


def test_nor_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path)
    with pytest.raises(Broken, match="outside the folder"):
        promise(target(lambda data, folder: (folder / "link/x").write_text("")), b"", tmp_path / "in")


def test_it_ends(tmp_path: Path) -> None:
    with pytest.raises(Broken, match=r"not done after 0\.3 s of processor time"):
        promise(target(_endless), b"", tmp_path)


def test_afterwards_all_is_as_before(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    promise(target(lambda data, folder: None), b"", tmp_path / "in")
    (tmp_path / "new").write_text("x")
    assert subprocess.run([sys.executable, "-c", ""], check=False).returncode == 0


def test_every_kept_case_is_of_a_target_and_small() -> None:
    folders = {path.name for path in (Path(__file__).parent / "cases").iterdir() if path.is_dir()}
    assert folders <= set(names())
    assert all(path.stat().st_size < 1 << 16 for name in names() for path in cases(name))
