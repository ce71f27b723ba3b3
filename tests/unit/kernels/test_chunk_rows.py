"""How many rows of logits are held at once."""

from __future__ import annotations

import pytest
import torch

from preceptor.kernels import chunk_rows as module
from preceptor.kernels.chunk_rows import CHUNK_ELEMENTS, chunk_rows

GB = 2**30


def with_free(monkeypatch: pytest.MonkeyPatch, free: int, reserved: int = 0, allocated: int = 0) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)


def test_a_cpu_has_one_number_of_elements() -> None:
    assert chunk_rows(32_000, torch.device("cpu"), 4) == CHUNK_ELEMENTS // 32_000
    assert chunk_rows(10 * CHUNK_ELEMENTS, torch.device("cpu"), 4) == 1


@pytest.mark.parametrize(
    ("free", "rows"),
    [
        (64 * GB, 8192),  # the most
        (16 * GB, 4096),
        (15.99 * GB, 2048),
        (8.1 * GB, 2048),
        (GB, 256),
        (0.1 * GB, 32),  # the fewest
        (0, 32),
    ],
)
def test_a_gpu_takes_an_eighth_of_what_is_free_in_powers_of_two(
    monkeypatch: pytest.MonkeyPatch, free: float, rows: int
) -> None:
    with_free(monkeypatch, int(free))
    assert chunk_rows(2**17, torch.device("cuda"), 4) == rows


def test_what_the_allocator_has_in_reserve_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, GB, reserved=20 * GB, allocated=5 * GB)
    assert chunk_rows(2**17, torch.device("cuda"), 4) == 4096


def test_a_pretended_gpu_counts_as_a_cpu() -> None:
    """Planning runs models on devices that are not there."""
    if not torch.cuda.is_available():
        assert chunk_rows(1000, torch.device("cuda"), 4) == module.CHUNK_ELEMENTS // 1000
