"""A full disk: one sentence, exit code 1, nothing half-written is taken for whole, and with room the run goes on."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import every_kind
from endpoint_stub import StubEndpoint
from preceptor.cli import main
from preceptor.errors import RunFailed
from preceptor.evaluation.endpoint import Completion, Endpoint
from preceptor.recipe import EndpointSpec
from preceptor.system.disk import DiskFull, full_disk
from preceptor.system.files import write_atomic
from small_disk import SmallDisk, small_disk

PAGE = 4096
STEP = int(os.environ.get("DISK_FULL_STEP", "67"))
"""Pages by which the disk of the first test grows; fewer are more failures."""
FIGURES = r"\([\d.,]+ kB of [\d.,]+ [kM]B are free(, and [\d.,]+ kB are to be written)?\)"


@pytest.fixture
def disk(tmp_path: Path) -> Any:
    with small_disk(tmp_path / "disk", PAGE) as made:
        yield made


def test_a_run_whose_disk_is_full_again_and_again(
    disk: SmallDisk, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each time there is a little more room, until it is done, with every number as on a disk with room."""
    with StubEndpoint(lambda body: "[[7]]") as stub:
        path = every_kind.write(tmp_path, every_kind.document(tmp_path, tmp_path / "runs", stub.url))
        assert main(["run", str(path)]) == 0
        paid = len(stub.requests)
        command = ["run", str(path), f"runs_dir={disk.folder}/runs"]
        failed: list[str] = []
        size = PAGE
        capfd.readouterr()
        while (code := main(command)) != 0:
            err = capfd.readouterr().err
            said = [line for line in err.splitlines() if line.startswith("error: ")]
            assert (code, len(said)) == (1, 1), err[-2000:]
            assert re.search(rf"{disk.folder}/[\w./-]*: the disk is full {FIGURES}; ", said[0])
            assert "what is finished is kept, and once there is room `preceptor run" in said[0]
            assert "goes on from there" in said[0]
            failed += re.findall(r"error: (?:stage )?(\S+)", said[0])
            size += 22 * PAGE if size == PAGE else STEP * PAGE
            disk.resize(size)
        print("stopped in", failed)
        assert len(failed) >= 5, failed
        assert len({name for name in failed if "/" not in name}) >= 3, "of several stages"
        assert len(stub.requests) <= 2 * paid
    whole, mended = (every_kind.outcome(each) for each in (tmp_path / "runs/r", disk.folder / "runs/r"))
    assert mended == whole
    left = [path for path in (disk.folder / "runs").rglob(".*") if path.name not in (".lock", ".hashes.json")]
    assert not left, "nothing is left of what was cut short"


def test_before_anything_was_begun(disk: SmallDisk, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = every_kind.write(tmp_path, every_kind.document(tmp_path, disk.folder / "runs"))
    assert main(["run", str(path)]) == 1
    assert re.search(rf"error: {disk.folder}/runs/r/recipe.yaml: the disk is full {FIGURES}; ", capfd.readouterr().err)
    assert not list(disk.folder.iterdir())


def test_no_more_files(disk: SmallDisk, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    disk.resize(1 << 20, inodes=2)
    path = every_kind.write(tmp_path, every_kind.document(tmp_path, disk.folder / "runs"))
    assert main(["run", str(path)]) == 1
    err = capfd.readouterr().err
    assert "the disk is full (no more files: 2 of 2 inodes are in use); nothing was begun" in err
    assert not list(disk.folder.iterdir())


def test_a_report(disk: SmallDisk, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import toy_runs

    toy_runs.whole_run(tmp_path / "run")
    out = disk.folder / "report"
    assert main(["report", str(tmp_path / "run"), "--out", str(out)]) == 1
    assert re.search(rf"error: report: {out}/\S+: the disk is full {FIGURES}; make room", capfd.readouterr().err)


def test_a_reply_that_cannot_be_kept_leaves_those_before_it(disk: SmallDisk, tmp_path: Path) -> None:
    """What was written of it is taken back: replies that are still under way would follow on it."""
    answers = {"a": "short", "b": "x" * 5000, "c": "short"}
    with StubEndpoint(lambda body: answers[body["messages"][-1]["content"]]) as stub:
        spec = EndpointSpec(endpoint=stub.url, model="m", concurrency=1)

        def ask() -> list[str]:
            asked = [Completion(({"role": "user", "content": text},), 8) for text in answers]
            endpoint = Endpoint(spec, cache=disk.folder / "replies.jsonl", log=lambda line: None)
            found = sorted(endpoint.complete(asked, "judging"), key=lambda each: each[0])
            return [reply.text for _, reply in found]

        with pytest.raises(RunFailed, match="cannot be written") as caught:
            ask()
        assert "the disk is full" in str(full_disk(caught.value, disk.folder))
        kept = (disk.folder / "replies.jsonl").read_bytes()
        assert kept.endswith(b"\n")
        assert [json.loads(line)["reply"]["text"] for line in kept.splitlines()] == ["short"]
        disk.resize(16 * PAGE)
        assert ask() == list(answers.values())
        assert len(stub.requests) == 4, "only the one that could not be kept was asked for again"


# --- what libraries say -----------------------------------------------------------------------------------------


def safetensors_file(folder: Path) -> None:
    save_file({"a": torch.zeros(100_000)}, folder / "a.safetensors")


def torch_file(folder: Path) -> None:
    torch.save(torch.zeros(100_000), folder / "a.pt")


def numpy_file(folder: Path) -> None:
    np.zeros(100_000).tofile(folder / "a.npy")


def tokenizer_file(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({f"word{i}": i for i in range(2000)}, unk_token="word0")).save(str(folder / "tokenizer.json"))


def atomic_file(folder: Path) -> None:
    write_atomic(folder / "a.json", "x" * 100_000)


@pytest.mark.parametrize("write", [safetensors_file, torch_file, numpy_file, tokenizer_file, atomic_file])
def test_it_is_told_from_other_failures(write: Any, disk: SmallDisk) -> None:
    with pytest.raises(Exception) as caught:  # each library has its own
        write(disk.folder)
    failure: Exception = caught.value
    try:
        raise RuntimeError("a stage failed") from failure
    except RuntimeError as error:
        said = full_disk(error, disk.folder)
    assert said is not None, f"{type(failure).__name__}: {failure}"
    assert "the disk is full" in said


def test_what_is_none(tmp_path: Path) -> None:
    assert full_disk(ValueError("no"), tmp_path) is None
    assert full_disk(PermissionError(errno.EACCES, "no"), tmp_path) is None
    room = os.statvfs(tmp_path)
    assert room.f_bavail * room.f_frsize > 1 << 30, "this test wants a disk with room"
    assert full_disk(RuntimeError("PytorchStreamWriter failed writing file data/0"), tmp_path) is None


def test_sizes_and_quotas(tmp_path: Path) -> None:
    said = full_disk(DiskFull(errno.EDQUOT, tmp_path / "a", 3_200_000_000), tmp_path)
    assert said is not None
    assert said.startswith(f"{tmp_path}/a: the disk quota is used up (")
    assert said.endswith("are free, and 3.2 GB are to be written)")


@pytest.mark.parametrize(
    "error",
    [
        RunFailed("the endpoint said: 500, No space left on device"),  # whose disk is another machine's
        RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"),
        RuntimeError("unable to open shared memory object </torch_1_2_0>: No space left on device (28)"),
    ],
)
def test_other_things_that_are_full(error: Exception, tmp_path: Path) -> None:
    """A server's disk, and the shared memory that containers keep small: there is room here."""
    assert full_disk(error, tmp_path) is None
