"""Which rows each teacher is run on, and what the parts cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import toys
from preceptor.signals import Needs, Part, TokenBatch, Wanted
from preceptor.teachers import ModelTeacher, RoutedTeacher

ROUTES = ("general", "shop", "news")
LENGTHS, ANSWERS = [9, 6, 11, 5, 8, 7], [4, 2, 0, 3, 5, 1]
ROW_ROUTES = [1, 0, 1, 0, 1, 2]
LOGITS_EVERYWHERE = Needs(logits=frozenset({0, 1, 2}))


class Watched(ModelTeacher):
    """A tiny teacher that keeps the input ids of each forward."""

    def __init__(self, seed: int, *, name: str = "teacher", sharded: bool = False, **changes: Any) -> None:
        super().__init__(toys.llama(seed, torch.float64, **changes), name=name)
        self.seen: list[torch.Tensor] = []
        self.calls: list[str] | None = None
        self._sharded = sharded
        self.model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: Any, kwargs: Any) -> None:
        self.seen.append(kwargs["input_ids"].clone())
        if self.calls is not None:
            self.calls.append(self.name)

    @property
    def sharded(self) -> bool:
        return self._sharded


def mixed(routes: Sequence[int] = ROW_ROUTES, answers: Sequence[int] = ANSWERS, **how: Any) -> TokenBatch:
    return toys.batch([[row] for row in toys.rows(3, LENGTHS, answers)], routes=routes, **how)


def three() -> tuple[list[Watched], RoutedTeacher]:
    made = [Watched(seed, name=name) for seed, name in enumerate(ROUTES)]
    return made, RoutedTeacher(dict(zip(ROUTES, made)), route_names=ROUTES)


def same_part(part: Part, teacher: ModelTeacher, batch: TokenBatch, rows: list[int]) -> None:
    """`part` is what `teacher` says about `rows`, in their order."""
    index = torch.tensor(rows)
    assert part.rows is not None
    assert part.rows.tolist() == rows
    alone = teacher.observe(batch.select(index), Wanted(logits=True)).hidden_ND
    assert part.hidden_ND is not None
    torch.testing.assert_close(part.hidden_ND, alone, rtol=0, atol=0)
    assert part.targets is not None
    assert part.targets.tolist() == [i for i, row in enumerate(batch.targets.row_N.tolist()) if row in rows]


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_each_teacher_sees_exactly_its_rows(padding_side: str) -> None:
    batch = mixed(padding_side=padding_side)
    teachers, routed = three()
    parts = routed(batch, LOGITS_EVERYWHERE).parts
    own = {"general": [1, 3], "shop": [0, 4], "news": [5]}  # row 2 of the shop has no target
    for teacher in teachers:
        assert len(teacher.seen) == 1
        assert torch.equal(teacher.seen[0], batch.input_ids[own[teacher.name]])
    assert [part.teacher for part in parts] == list(ROUTES)
    for part, teacher in zip(parts, teachers, strict=True):
        same_part(part, teacher, batch, own[teacher.name])
        assert part.weight == 1.0


def test_the_parts_cover_every_target_once() -> None:
    batch = mixed()
    _, routed = three()
    covered = torch.cat([part.targets for part in routed(batch, LOGITS_EVERYWHERE).parts if part.targets is not None])
    assert sorted(covered.tolist()) == list(range(batch.targets.count))


def test_rows_that_no_term_teaches_go_to_nobody() -> None:
    batch = mixed()
    teachers, routed = three()
    parts = routed(batch, Needs(logits=frozenset({1}))).parts
    assert [len(teacher.seen) for teacher in teachers] == [0, 1, 0]
    assert [part.teacher for part in parts] == ["shop"]
    same_part(parts[0], teachers[1], batch, [0, 4])


def test_rows_without_a_target_go_to_nobody() -> None:
    teachers, routed = three()
    parts = routed(mixed(answers=[0, 2, 0, 3, 0, 0]), LOGITS_EVERYWHERE).parts
    assert [len(teacher.seen) for teacher in teachers] == [1, 0, 0]
    assert [part.teacher for part in parts] == ["general"]
    assert routed(mixed(answers=[0] * 6), LOGITS_EVERYWHERE).parts == ()
    assert [len(teacher.seen) for teacher in teachers] == [1, 0, 0]


def test_a_batch_of_one_route_is_not_copied() -> None:
    batch = mixed(routes=[1] * 6, answers=[1, 2, 3, 3, 2, 1])
    teachers, routed = three()
    (part,) = routed(batch, LOGITS_EVERYWHERE).parts
    assert part.rows is None
    assert part.targets is None
    assert torch.equal(teachers[1].seen[0], batch.input_ids)


def test_a_teacher_of_two_routes_is_called_once_for_both() -> None:
    batch = mixed()
    reference, expert = Watched(0, name="reference"), Watched(1, name="expert")
    routed = RoutedTeacher({"shop": expert}, route_names=ROUTES, default=reference)
    parts = routed(batch, LOGITS_EVERYWHERE).parts
    assert [len(each.seen) for each in (reference, expert)] == [1, 1]
    assert torch.equal(reference.seen[0], batch.input_ids[[1, 3, 5]])
    by_name = {part.teacher: part for part in parts}
    same_part(by_name["reference"], reference, batch, [1, 3, 5])
    same_part(by_name["expert"], expert, batch, [0, 4])


def test_several_teachers_of_a_route_all_see_its_rows_and_weigh_their_share() -> None:
    batch = mixed()
    reference, one, two = (Watched(seed, name=str(seed)) for seed in range(3))
    routed = RoutedTeacher({"shop": [(one, 0.25), (two, 0.75)]}, route_names=ROUTES, default=reference)
    parts = routed(batch, LOGITS_EVERYWHERE).parts
    assert {part.teacher: (part.weight, part.rows.tolist()) for part in parts if part.rows is not None} == {
        "0": (1.0, [1, 3, 5]),
        "1": (0.25, [0, 4]),
        "2": (0.75, [0, 4]),
    }


def test_teachers_that_are_called_the_same_keep_apart() -> None:
    one, two, three = (Watched(seed) for seed in range(3))
    routed = RoutedTeacher({"shop": one, "general": two}, route_names=ROUTES, default=three)
    parts = routed(mixed(), LOGITS_EVERYWHERE).parts
    assert len({part.teacher for part in parts}) == 3
    for part, (teacher, rows) in zip(parts, [(two, [1, 3]), (one, [0, 4]), (three, [5])], strict=True):
        same_part(part, teacher, mixed(), rows)


def test_only_the_layers_and_logits_that_a_route_needs_are_kept() -> None:
    batch = mixed()
    teachers, routed = three()
    needs = Needs(logits=frozenset({0}), attention=frozenset({1}), layers={"shop": (1,), "general": (0,)})
    general, shop = routed(batch, needs).parts
    assert (general.teacher, shop.teacher) == ("general", "shop")
    assert general.hidden_ND is not None
    assert not general.attention
    assert shop.hidden_ND is None
    assert list(shop.attention) == [1]
    assert shop.attention[1].q_BHRD.shape[0] == 2
    assert shop.attention[1].q_BHRD.shape[2] == 5, "padded to its own longest row"
    assert not teachers[2].seen


def test_one_teacher_is_not_run_on_rows_that_need_none() -> None:
    teacher = Watched(0)
    batch = mixed()
    (part,) = teacher(batch, LOGITS_EVERYWHERE).parts
    assert torch.equal(teacher.seen[0], batch.input_ids[[0, 1, 3, 4, 5]])
    same_part(part, Watched(0), batch, [0, 1, 3, 4, 5])
    (part,) = teacher(batch, Needs(logits=frozenset({2}))).parts
    assert torch.equal(teacher.seen[1], batch.input_ids[[5]])
    assert teacher(batch, Needs()).parts == ()
    assert len(teacher.seen) == 2


# --- sharded teachers -------------------------------------------------------------------------------------------


def sharded_calls(batch: TokenBatch, sharded: Sequence[str]) -> tuple[list[str], list[Part], dict[str, Watched]]:
    """Who is called, in which order, on one rank that holds `batch`."""
    calls: list[str] = []
    made = {name: Watched(seed, name=name, sharded=name in sharded) for seed, name in enumerate(ROUTES)}
    for teacher in made.values():
        teacher.calls = calls
    routed = RoutedTeacher({"shop": made["shop"], "general": made["general"]}, route_names=ROUTES, default=made["news"])
    return calls, list(routed(batch, LOGITS_EVERYWHERE).parts), made


def test_a_sharded_teacher_without_rows_is_called_with_one_that_is_dropped() -> None:
    batch = mixed(routes=[1] * 6)
    calls, parts, made = sharded_calls(batch, ["general", "shop"])
    assert calls == ["general", "shop"], "news is not sharded and has no rows"
    assert [part.teacher for part in parts] == ["shop"]
    assert made["general"].seen[0].shape == (1, batch.input_ids.shape[1])
    assert torch.equal(made["shop"].seen[0], batch.input_ids[[0, 1, 3, 4, 5]])


def test_every_rank_calls_the_sharded_ones_in_one_order() -> None:
    orders = [
        sharded_calls(mixed(routes=routes, answers=answers), ROUTES)[0]
        for routes, answers in [
            ([0] * 6, ANSWERS), ([1] * 6, ANSWERS), ([2, 1, 0, 2, 1, 0], ANSWERS), ([2] * 6, [0] * 6),
        ]
    ]  # fmt: skip
    assert orders == [list(ROUTES)] * 4


def test_a_sharded_teacher_of_several_routes_is_called_once() -> None:
    teacher = Watched(0, sharded=True)
    RoutedTeacher({"shop": teacher, "general": teacher}, route_names=ROUTES, default=Watched(1))(
        mixed(routes=[2] * 6), LOGITS_EVERYWHERE
    )
    assert len(teacher.seen) == 1
