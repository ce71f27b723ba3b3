"""Bytes held, counted by hand."""

from __future__ import annotations

import torch

from preceptor.estimate.storages import ACTIVATIONS, GRADIENTS, PARTS, WEIGHTS, Storages


def test_the_peak_is_what_was_held_at_once() -> None:
    storages = Storages()
    first = torch.zeros(100)  # 400 bytes
    storages.see(first)
    second = torch.zeros(50, dtype=torch.float64)  # 400 bytes: 800 now
    storages.see(second)
    del first
    third = torch.zeros(300, dtype=torch.int8)  # 700
    storages.see(third)
    assert storages.peak().total == 800
    fourth = torch.zeros(101, dtype=torch.bool)  # 801
    storages.see(fourth)
    assert storages.peak().total == 801
    assert storages.peak().parts == {**dict.fromkeys(PARTS, 0), ACTIVATIONS: 801}


def test_a_view_and_a_second_look_are_no_memory() -> None:
    storages = Storages()
    whole = torch.zeros(10, 10)
    assert storages.see(whole)
    assert not storages.see(whole)
    assert not storages.see(whole[3:, 2])
    assert not storages.see(whole.detach())
    assert storages.peak().total == 400


def test_a_storage_lives_as_long_as_its_last_view() -> None:
    storages = Storages()
    whole = torch.zeros(100)
    storages.see(whole)
    part = whole[:1]
    del whole
    other = torch.zeros(25)
    storages.see(other)
    assert storages.peak().total == 500
    del part
    storages.see(third := torch.zeros(110))
    assert storages.peak().total == 540
    assert third.numel() + other.numel() == 135


def test_a_label_counts_from_the_allocation_on() -> None:
    storages = Storages()
    tensor = torch.zeros(100)
    storages.see(tensor)
    temporary = torch.zeros(10)
    storages.see(temporary)  # the peak: 440
    del temporary
    storages.label([tensor, None], GRADIENTS)
    peak = storages.peak()
    assert (peak.parts[GRADIENTS], peak.parts[ACTIVATIONS]) == (400, 40)
    storages.label([fresh := torch.zeros(5)], WEIGHTS)  # sees what it labels
    assert storages.most(WEIGHTS) == 20
    assert fresh.numel() == 5


def test_a_share_can_move_the_peak() -> None:
    storages = Storages()
    weight = torch.zeros(100)
    storages.label([weight], WEIGHTS)
    with storages.phase("update"):
        storages.see(torch.zeros(10))  # 440, freed at once
    del weight
    with storages.phase("forward"):
        storages.see(torch.zeros(105))  # 420
    assert (storages.peak().total, storages.peak().phase) == (440, "update")
    shared = storages.peak({WEIGHTS: 0.25})
    assert (shared.total, shared.phase) == (420, "forward")


def test_what_is_made_in_a_block_is_for_its_part() -> None:
    storages = Storages()
    with storages.making(GRADIENTS):
        storages.see(one := torch.zeros(3))
    storages.see(two := torch.zeros(4))
    assert storages.peak().parts[GRADIENTS] == one.numel() * 4
    assert storages.peak().parts[ACTIVATIONS] == two.numel() * 4


def test_nothing_is_held_where_nothing_was_seen() -> None:
    assert Storages().peak().total == 0
