"""Teachers that fail in the middle of a training are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import stores
import toys
from preceptor import Logits, ModelTeacher, RoutedTeacher, StoredTeacher
from preceptor.errors import RunFailed
from preceptor.signals import Teacher
from preceptor.teachers import store
from reliability.faulty import made, rows, student


def failing(name: str, at: int) -> ModelTeacher:
    """A teacher whose forward number `at`, from 0, raises."""
    teacher = ModelTeacher(toys.mistral(3), name=name)
    calls = iter(range(10**6))

    def fail(module: Any, args: Any) -> None:
        if next(calls) == at:
            raise ValueError("no kernel\nfor this")

    teacher.model.get_decoder().layers[0].register_forward_pre_hook(fail)
    return teacher


def said_of(folder: Path, teacher: Teacher, routes: tuple[str, ...] = ("a",)) -> str:
    trainer = made(
        folder, rows(routes=routes), model=student(poison=0), routes=routes, teacher=teacher, terms=[Logits()], limit=0
    )
    with pytest.raises(RunFailed) as failed:
        trainer.train()
    return str(failed.value)


def test_a_teacher_that_raises(tmp_path: Path) -> None:
    said = said_of(tmp_path, failing("teacher big", 2))
    assert said == "teacher big failed on 2 rows of 9 tokens (ValueError: no kernel for this)"


def test_a_teacher_of_a_route_that_raises(tmp_path: Path) -> None:
    good = ModelTeacher(toys.mistral(3), name="teacher small")
    teacher = RoutedTeacher({"a": good, "b": failing("teacher big", 3)}, route_names=("a", "b"))
    said = said_of(tmp_path, teacher, ("a", "b"))
    assert said == "teacher big (route b) failed on 1 row of 7 tokens (ValueError: no kernel for this)"


def test_a_teacher_with_a_weight_that_is_no_number(tmp_path: Path) -> None:
    teacher = ModelTeacher(toys.mistral(3), name="teacher broken")
    with torch.no_grad():
        teacher.model.lm_head.weight[7, 3] = torch.nan
    said = said_of(tmp_path, teacher)
    assert said.startswith(
        "the loss is not finite (logits; 4 rows of a; teacher broken gives values that are not finite) at step 1, and "
        "`max_nonfinite_steps` is 0; rows are listed in "
    )


@pytest.mark.parametrize("shards_open", [1, 256])
def test_a_shard_that_vanishes(shards_open: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that is open is read on; one that must be opened again is missed by its teacher's name."""
    monkeypatch.setattr(store, "_OPEN", shards_open)
    data = rows()
    folder = stores.write(tmp_path / "store", toys.mistral(3), data, batch=1, shard_bytes=2000)
    teacher = StoredTeacher(folder, name="teacher stored")
    assert len(teacher.store._names) == 2
    trainer = made(tmp_path, data, model=student(poison=0), teacher=teacher, terms=[Logits()])
    for shard in teacher.store._names:
        (folder / shard).unlink()
    if shards_open > 1:
        trainer.train()
        return
    with pytest.raises(RunFailed, match=r"^teacher stored failed on \d rows of \d tokens \(FileNotFoundError: .*\)$"):
        trainer.train()
