"""Results on the disk: what a crash leaves is read again, and what is not of this work is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from preceptor.evaluation.kept import Kept, header_of


def test_results_come_back(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    kept: Kept[int] = Kept(path, {"of": "a"})
    assert not path.exists()  # nothing is written before there is something to keep
    kept.add([(3, {"text": "ü\u2028 x"}), (1, None)])
    kept.add([(2, [1.5])])
    again: Kept[int] = Kept(path, {"of": "a"})
    assert again.results == kept.results == {3: {"text": "ü\u2028 x"}, 1: None, 2: [1.5]}
    assert header_of(path) == {"of": "a"}


@pytest.mark.parametrize("torn", [b'[2, {"te', b"[2", b"\xff\xfe", b'[2]\n[4, "x"]\n', b"null\n", b"[[], 1]\n"])
def test_what_a_crash_cut_short_is_dropped_and_written_over(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "kept"
    Kept[int](path, {"of": "a"}).add([(1, "one")])
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    kept: Kept[int] = Kept(path, {"of": "a"})
    assert kept.results == {1: "one"}
    kept.add([(2, "two")])
    assert path.read_bytes() == whole + b'[2, "two"]\n'
    assert Kept[int](path, {"of": "a"}).results == {1: "one", 2: "two"}


@pytest.mark.parametrize("before", [b"", b"[]\n", b"x\n", b'{"of": "b"}\n[1, 2]\n', b'{"of": "a"}'])
def test_other_results_are_replaced_when_there_are_some(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "kept"
    path.write_bytes(before)
    kept: Kept[str] = Kept(path, {"of": "a"})
    assert kept.results == {}
    assert path.read_bytes() == before
    kept.add([("x", 1)])
    assert path.read_text() == '{"of": "a"}\n["x", 1]\n'
    assert header_of(path) == {"of": "a"}


def test_a_file_without_a_header_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    assert header_of(path) is None
    for content in (b"", b'{"of": "a"}', b"[]\n", b"x\n"):
        path.write_bytes(content)
        assert header_of(path) is None
