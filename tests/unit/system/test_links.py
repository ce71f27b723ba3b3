"""A run writes and deletes in its own directory alone, whatever links lie there."""

from __future__ import annotations

from pathlib import Path

import pytest

from preceptor.errors import InputErrors
from preceptor.recipe import parse_recipe
from preceptor.runs import run
from preceptor.system.links import refuse_links

STAGES = ["kd", "expert"]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "precious"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "thesis.txt").write_text("five years")
    (folder / ".thesis.txt.unfinished").write_text("a draft")
    return folder


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "runs/shop"
    (folder / "kd/checkpoints").mkdir(parents=True)
    (folder / "report").mkdir()
    return folder


@pytest.mark.parametrize(
    "place",
    ["expert", "kd/model", "kd/metrics.jsonl", "kd/checkpoints/checkpoint-4", ".lock", "requests", "report/data"],
)
def test_a_link_out_of_the_run_is_refused(directory: Path, outside: Path, place: str) -> None:
    target = outside / "thesis.txt" if "." in place else outside
    (directory / place).symlink_to(target)
    with pytest.raises(InputErrors) as caught:
        refuse_links(directory, STAGES)
    assert caught.value.errors == [
        f"{directory / place}: is a symbolic link to {target}; a run writes and deletes in its own directory alone: "
        "put a folder or a file there instead, or set runs_dir to where there is room"
    ]


def test_a_stage_cannot_be_another(directory: Path) -> None:
    (directory / "expert").symlink_to("kd")
    with pytest.raises(InputErrors, match="expert: is a symbolic link to"):
        refuse_links(directory, STAGES)


def test_links_inside_and_behind_which_all_lies_are_let_be(directory: Path, outside: Path) -> None:
    (directory / "kd/checkpoints/last").symlink_to("checkpoint-4")
    (directory / "latest").symlink_to(outside)  # no stage's
    (directory / "kd.1").mkdir()
    (directory / "kd.1/model").symlink_to(outside)  # moved aside
    refuse_links(directory, STAGES)
    behind = directory.parent.with_name("behind")
    behind.symlink_to(directory.parent)
    refuse_links(behind / "shop", STAGES)
    refuse_links(directory / "none", STAGES)


@pytest.mark.parametrize("redo", [[], ["kd"]])
@pytest.mark.parametrize("place", ["kd", ".lock", "kd/model"])
def test_run_writes_and_deletes_nothing_behind_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: Path, place: str, redo: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    link = tmp_path / "runs/shop" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / "thesis.txt" if place == ".lock" else outside)
    before = {path: path.is_dir() or path.read_bytes() for path in outside.rglob("*")}
    recipe = parse_recipe({"name": "shop", "stages": {"kd": {"kind": "init", "config": {"model_type": "llama"}}}})
    with pytest.raises(InputErrors, match="is a symbolic link to"):
        run(recipe, redo=redo, log=lambda line: None)
    assert {path: path.is_dir() or path.read_bytes() for path in outside.rglob("*")} == before
    assert link.is_symlink()
    assert [path.name for path in tmp_path.joinpath("runs/shop").iterdir()] == [Path(place).parts[0]]
