"""A checkpoint that a stranger has changed, checksums and all: what is planted there is refused and never runs."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import preceptor
from invariant.recipes import recipe
from preceptor.errors import InputError, RunFailed
from preceptor.system.files import MANIFEST, sha256_file
from preceptor.trainer import DistillationTrainer
from preceptor.training.checkpoints import last_checkpoint


class Bomb:
    """A pickle of it makes the file `planted` when it is read."""

    planted = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (Bomb.planted,)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Bomb, "planted", str(tmp_path / "planted"))
    return tmp_path / "planted"


def test_the_bomb_goes_off_where_pickles_are_read(planted: Path) -> None:
    pickle.loads(pickle.dumps(Bomb()))
    assert planted.exists()


def agree(checkpoint: Path) -> None:
    """Makes the checkpoint's manifest that of the files that are there now."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST]
    said = {
        path.relative_to(checkpoint).as_posix(): {"sha256": sha256_file(path), "size": path.stat().st_size}
        for path in files
    }
    (checkpoint / MANIFEST).write_text(json.dumps(said))
    assert last_checkpoint(checkpoint.parent) == checkpoint


def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a stage that was killed after it."""
    step = DistillationTrainer.training_step
    calls = iter(range(10**6))

    def stopping(self: DistillationTrainer, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == 7:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(DistillationTrainer, "training_step", stopping)
        with pytest.raises((KeyboardInterrupt, RunFailed)):
            again(folder)
    [checkpoint] = (folder / "runs" / "r" / "kd" / "checkpoints").glob("checkpoint-*")
    return checkpoint


def again(folder: Path) -> None:
    training = {"num_train_epochs": 1, "save_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True}
    preceptor.run(recipe(folder, "runs", training=training), log=lambda line: None)


# --- state that is read ---------------------------------------------------------------------------------------------


def test_a_pickle_in_the_place_of_state_does_not_run(
    tmp_path: Path, planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = stopped(tmp_path, monkeypatch)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        good = (checkpoint / name).read_bytes()
        if name == "scheduler.pt":  # as torch wrote it long ago
            (checkpoint / name).write_bytes(pickle.dumps(Bomb(), protocol=2))
        else:
            torch.save(Bomb(), checkpoint / name)
        agree(checkpoint)
        with pytest.raises((RunFailed, InputError), match="Weights only load failed"):
            again(tmp_path)
        assert not planted.exists(), name
        (checkpoint / name).write_bytes(good)
    agree(checkpoint)
    again(tmp_path)


def test_pickles_beside_the_state_are_not_read(tmp_path: Path, planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = stopped(tmp_path, monkeypatch)
    for name in ("training_args.bin", "pytorch_model.bin", "optimizer.bin", "vocab.pkl"):
        torch.save(Bomb(), checkpoint / name)
    (checkpoint / "sitecustomize.py").write_text(f"import os; os.mkdir({str(planted)!r})\n")
    agree(checkpoint)
    again(tmp_path)
    assert not planted.exists()
    model = tmp_path / "runs" / "r" / "kd" / "model"
    assert not [path for path in model.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".py")]


# --- files that are wrong -------------------------------------------------------------------------------------------


def test_a_link_and_an_odd_manifest_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = stopped(tmp_path, monkeypatch)
    manifest = (checkpoint / MANIFEST).read_bytes()
    for text in (
        "[" * 100_000,
        '{"x": {"sha256": "a", "size": 1e999}}',
        "[]",
        "\ud800".encode("utf-8", "surrogatepass"),
    ):
        (checkpoint / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError, match="manifest"):
            last_checkpoint(checkpoint.parent)
    (checkpoint / MANIFEST).write_bytes(manifest)
    (checkpoint / "further").symlink_to(tmp_path / "shop.jsonl")
    with pytest.raises(InputError, match="was added after the folder was finished"):
        last_checkpoint(checkpoint.parent)
