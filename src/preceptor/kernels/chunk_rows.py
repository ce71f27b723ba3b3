"""How many rows of logits are held at once."""

from __future__ import annotations

import torch

# Logits held at once on a CPU, in elements (float32: 16 MB). One thread, 1024 positions, V = 32,000, width 256: 2.2 s
# at 2**20, 1.85 s from 2**21 to 2**23, 2.3 s at 2**24.
CHUNK_ELEMENTS = 2**22
SHARE = 1 / 8
"""Of a GPU's free memory, what a chunk may take."""
FEWEST, MOST = 32, 8192
"""Rows on a GPU: fewer starve its matrix units, more save nothing."""


def chunk_rows(width: int, device: torch.device, bytes_per_logit: int) -> int:
    """Rows of `width` logits in a chunk.

    On a GPU as many as a share of the memory that is free now allows, in powers of two, so that a little memory more or
    less changes nothing. The number of rows never changes what is computed beyond rounding: values belong to single
    rows, and the head's gradient is a sum over chunks.
    """
    free = _free_bytes(device)
    if free is None:
        return max(1, CHUNK_ELEMENTS // width)
    rows = int(free * SHARE) // (width * bytes_per_logit)
    return min(max(1 << max(rows.bit_length() - 1, 0), FEWEST), MOST)


def _free_bytes(device: torch.device) -> int | None:
    """Memory that tensors can be made in, the allocator's own reserve included; None where nobody says."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
