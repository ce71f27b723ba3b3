"""Files and folders that are seen whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
from pathlib import Path

import pytest

from preceptor.errors import InputError, InputErrors, accepted, did_you_mean, shown
from preceptor.system import files


def test_sha256_of_a_file_over_one_block(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 7)
    (tmp_path / "x").write_bytes(data)
    assert files.sha256_file(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_sha256_of_json_ignores_order_and_refuses_what_is_no_json() -> None:
    assert files.sha256_json({"a": 1, "b": [1.5, None]}) == files.sha256_json({"b": [1.5, None], "a": 1})
    assert files.sha256_json({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()
    assert files.sha256_json([1, 2]) != files.sha256_json([2, 1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.sha256_json(float("nan"))
    with pytest.raises(TypeError):
        files.sha256_json({"a": object()})


def test_json_text_is_strict_json() -> None:
    value = json.loads(files.json_text({"a": float("nan"), "b": (1, float("inf")), "c": Path("x")}))
    assert value == {"a": None, "b": [1, None], "c": "x"}


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "x", "old")
    files.write_atomic(tmp_path / "x", "new é")
    assert (tmp_path / "x").read_bytes() == "new é".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~umask


def test_write_atomic_that_is_stopped_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_atomic(tmp_path / "x", "old")

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(tmp_path / "x", "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("x", "old")]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    aside = tmp_path / "aside"
    (aside / "deep").mkdir(parents=True)
    (aside / "a.txt").write_text("a")
    (aside / "deep" / "b.txt").write_text("bb")
    files.publish_directory(aside, tmp_path / "final")
    return tmp_path / "final"


def test_publish_and_verify(published: Path) -> None:
    assert [file.name for file in published.parent.iterdir()] == ["final"]
    manifest = json.loads((published / "manifest.json").read_text())
    assert manifest["deep/b.txt"] == {"sha256": hashlib.sha256(b"bb").hexdigest(), "size": 2}
    assert sorted(manifest) == ["a.txt", "deep/b.txt"]
    files.verify_directory(published)


def test_publishing_again_replaces(published: Path) -> None:
    aside = published.parent / "aside"
    aside.mkdir()
    (aside / "c.txt").write_text("c")
    files.publish_directory(aside, published)
    files.verify_directory(published)
    assert sorted(file.name for file in published.iterdir()) == ["c.txt", "manifest.json"]
    assert [file.name for file in published.parent.iterdir()] == ["final"]


def test_verify_names_the_file(published: Path) -> None:
    (published / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"final/a.txt: is not the file that manifest.json lists"):
        files.verify_directory(published)
    (published / "a.txt").unlink()
    with pytest.raises(InputError, match=r"final/a.txt: is missing, though manifest.json lists it"):
        files.verify_directory(published)
    (published / "a.txt").write_text("a")
    files.verify_directory(published)
    (published / "deep" / "new").touch()
    with pytest.raises(InputError, match=r"final/deep/new: was added after the folder was finished; remove this file"):
        files.verify_directory(published)


@pytest.mark.parametrize("content", ["", "[]", '{"a.txt": 1}', '{"a.txt": {"size": 1}}'])
def test_verify_refuses_a_damaged_manifest(published: Path, content: str) -> None:
    (published / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest.json: is not a readable manifest; delete the folder"):
        files.verify_directory(published)


def test_verify_refuses_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no manifest.json, so it is not whole"):
        files.verify_directory(tmp_path)


def test_move_aside_takes_the_first_free_number(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "kd").mkdir()
        assert files.move_aside(tmp_path / "kd") == tmp_path / f"kd.{number}"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["kd.1", "kd.2"]


def test_words_of_messages() -> None:
    assert [accepted("a"), accepted("ab"), accepted("abc")] == ["a", "a or b", "a, b or c"]
    assert did_you_mean("Distil", ["distill", "sft"]) == " (did you mean 'distill'?)"
    assert did_you_mean("xyz", ["distill", "sft"]) == ""
    assert shown("x" * 100) == "'" + "x" * 29 + "…" + "x" * 14 + "'"


def test_errors_survive_another_process() -> None:
    error = pickle.loads(pickle.dumps(InputErrors(["one", "two"])))
    assert error.errors == ["one", "two"]
    assert str(error) == "one\ntwo"
