"""Blocks are cut by positions on the host: one copy a batch, and a forward without values (fake tensors) works too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import toys
from preceptor.kernels.attention_kl import attention_kl, cut_blocks
from preceptor.kernels.choice import implementation
from preceptor.signals import AttentionScores, TargetPositions, TokenBatch


def packed() -> TokenBatch:
    rows = toys.rows(0, [13, 9, 17, 5], [6, 0, 11, 2])
    return toys.batch([[rows[0], rows[3]], [rows[1], rows[2]], [rows[1]]], padding_side="left", extra=2)


def test_positions_are_copied_once() -> None:
    targets = packed().targets
    position_BR, start_BR = targets.on_host
    np.testing.assert_array_equal(position_BR, targets.position_BR.numpy())
    np.testing.assert_array_equal(start_BR, targets.start_BR.numpy())
    assert targets.on_host is targets.on_host


def test_a_selection_of_a_batch_has_its_own() -> None:
    batch = packed()
    assert batch.targets.on_host[0].shape == (3, 11)
    chosen = batch.select(torch.tensor([0])).to(torch.device("cpu")).targets
    np.testing.assert_array_equal(chosen.on_host[0], chosen.position_BR.numpy())
    assert chosen.on_host[0].shape == (1, 8)


@pytest.mark.parametrize("elements", [1, 30, 200, 800, 10**6])
@pytest.mark.parametrize("window", [3, 100])
def test_blocks_hold_every_row_once_and_every_key_it_sees(window: int, elements: int) -> None:
    targets, H = packed().targets, 2
    covered = torch.zeros_like(targets.valid_BR, dtype=torch.int64)
    for each in cut_blocks(targets, window, H, elements):
        covered[each.rows, each.block] += 1
        last, start = targets.position_BR[each.rows, each.block], targets.start_BR[each.rows, each.block]
        first = torch.maximum(start, last - window + 1)
        assert (each.keys.start, each.keys.stop) == (int(first.min()), int(last.max()) + 1)
        hidden = {int(j) for edge in each.edges for j in range(edge.start, edge.stop)}
        for j in set(range(each.keys.start, each.keys.stop)) - hidden:
            assert bool(((first <= j) & (j <= last)).all()), "a key outside the edges is hidden from some row"
        whole = covered[each.rows, each.block].numel() * H * (each.keys.stop - each.keys.start)
        assert whole <= elements or last.numel() == 1
    assert bool((covered[targets.valid_BR] == 1).all())
    assert int(covered.max()) == 1


def test_fake_tensors_pass_through() -> None:
    targets = packed().targets
    host = targets.on_host
    with FakeTensorMode() as mode, implementation("torch"):
        fake = TargetPositions(**{name: mode.from_tensor(each) for name, each in _tensors(targets).items()})
        fake.__dict__["on_host"] = host
        B, R = fake.position_BR.shape
        S = int(host[0].max()) + 1
        student, teacher = (
            AttentionScores(torch.empty(B, 4, R, D), torch.empty(B, 2, S, D), 0.5, window=7) for D in (8, 12)
        )
        heads = torch.tensor([0, 3, 1, 2])
        got = attention_kl(student, teacher, fake, fake.valid_BR.float(), heads=heads, block_elements=300)
        assert got.value_BHR.shape == (B, 4, R)
        assert got.dq_BHRD is not None
        assert got.dq_BHRD.shape == student.q_BHRD.shape
        assert got.dk_BGSD is not None
        assert got.dk_BGSD.shape == student.k_BGSD.shape


def _tensors(targets: TargetPositions) -> dict[str, torch.Tensor]:
    return {name: each for name, each in vars(targets).items() if isinstance(each, torch.Tensor)}
