"""The tensors of a batch, against a brute-force reading of the rows."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from preceptor.data.chat import EncodedRow
from preceptor.data.collator import Collator, filler_row

PAD = 99


def row(dataset: str, length: int, rng: random.Random, first: int = 100) -> EncodedRow:
    mask = np.array([False] + [rng.random() < 0.5 for _ in range(length - 1)])
    return EncodedRow(dataset, np.arange(first, first + length, dtype=np.int32), mask, f"{dataset}:{first}")


def read_back(batch: dict[str, torch.Tensor]) -> list[tuple[int, list[int], list[bool]]]:
    """(route, token ids, targets) of every segment, from the tensors alone."""
    found = []
    for b in range(len(batch["input_ids"])):
        segments = batch["segment_ids"][b]
        for segment in range(int(segments.max()) + 1):
            at = (segments == segment).nonzero().flatten()
            assert at.tolist() == list(range(int(at[0]), int(at[-1]) + 1)), "a segment is contiguous"
            assert batch["position_ids"][b, at].tolist() == list(range(len(at)))
            assert batch["attention_mask"][b, at].all()
            targets = batch["target_mask"][b, at].tolist()
            assert not targets[-1], "the token after the last one is of another segment"
            found.append((int(batch["routes"][b]), batch["input_ids"][b, at].tolist(), [False, *targets[:-1]]))
        padding = segments == -1
        assert not batch["attention_mask"][b, padding].any()
        assert not batch["target_mask"][b, padding].any()
        assert (batch["input_ids"][b, padding] == PAD).all()
    return found


def expected(rows: list[EncodedRow], names: list[str]) -> list[tuple[int, list[int], list[bool]]]:
    return [(names.index(r.dataset), r.input_ids.tolist(), r.is_target.tolist()) for r in rows]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("multiple", [None, 8])
def test_padding(side, multiple):
    rng = random.Random(1)
    rows = [row(rng.choice("ab"), rng.randint(1, 13), rng, 100 * i) for i in range(9)]
    batch = Collator(PAD, route_names=["b", "a"], padding_side=side, pad_to_multiple_of=multiple)(rows)
    assert list(batch) == ["input_ids", "attention_mask", "position_ids", "segment_ids", "target_mask", "routes"]
    assert {str(v.dtype) for k, v in batch.items() if k != "target_mask"} == {"torch.int64"}
    assert batch["target_mask"].dtype == torch.bool
    longest = max(map(len, rows))
    assert batch["input_ids"].shape == (9, longest if multiple is None else -(-longest // 8) * 8)
    assert read_back(batch) == expected(rows, ["b", "a"])
    edge = batch["segment_ids"][:, 0 if side == "right" else -1]
    assert (edge == 0).all()


def test_a_target_is_predicted_from_the_position_before_it():
    one = EncodedRow("a", np.array([5, 6, 7, 8], np.int32), np.array([False, False, True, True]), "a:1")
    batch = Collator(PAD, route_names=["a"])([one])
    assert batch["target_mask"].tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("seed", range(20))
def test_packing_changes_only_the_padding(side, seed):
    rng = random.Random(seed)
    rows = [row(rng.choice("abc"), rng.randint(1, 16), rng, 100 * i) for i in range(rng.randint(1, 20))]
    packed = Collator(PAD, route_names="abc", packing=True, max_length=16, padding_side=side)(rows)
    plain = Collator(PAD, route_names="abc", padding_side=side)(rows)
    assert sorted(read_back(packed)) == sorted(read_back(plain)) == sorted(expected(rows, ["a", "b", "c"]))
    assert packed["input_ids"].shape[1] <= 16
    assert int(packed["target_mask"].sum()) == int(plain["target_mask"].sum())
    for a, b in itertools.combinations(range(len(packed["routes"])), 2):
        used = packed["attention_mask"].sum(1)
        assert packed["routes"][a] != packed["routes"][b] or used[a] + used[b] > 16, "two packed rows would fit in one"


def test_packing_is_deterministic_and_best_fit():
    rng = random.Random(0)
    rows = [row("a", n, rng, 100 * i) for i, n in enumerate([3, 10, 7, 6])]
    batch = Collator(PAD, route_names=["a"], packing=True, max_length=13)(rows)
    assert batch["input_ids"].shape == (2, 13)
    assert batch["input_ids"][:, 0].tolist() == [0, 200]
    assert batch["segment_ids"][0].tolist() == [0] * 3 + [1] * 10


def test_filler_row_has_no_targets():
    batch = Collator(PAD, route_names=["a"])([filler_row(PAD, "a")])
    assert batch["input_ids"].tolist() == [[PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1]]
    assert not batch["target_mask"].any()


def test_wrong_settings():
    with pytest.raises(ValueError, match="packing needs max_length"):
        Collator(PAD, route_names=["a"], packing=True)
    with pytest.raises(ValueError, match="accepted are left or right"):
        Collator(PAD, route_names=["a"], padding_side="middle")
