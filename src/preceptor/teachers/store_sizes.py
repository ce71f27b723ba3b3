"""How many bytes each form of a store takes of a target position: arithmetic that needs no torch."""

from __future__ import annotations


def id_bits(vocabulary: int) -> int:
    """Bits of one token id."""
    return max(1, (vocabulary - 1).bit_length())


def kept(k: int, vocabulary: int) -> int:
    """Of `topk`, the tokens of a position. Never all: the rest would have nothing in it, for the student too."""
    return min(k, vocabulary - 1)


def bytes_per_target(mode: str, *, vocabulary: int, draws: int | None, k: int | None) -> tuple[float, float]:
    """The least and the most that a target position takes, without its row's key; `mode` is sample, topk or full."""
    bits = id_bits(vocabulary)
    if mode == "sample":
        assert draws is not None
        least = 2 + (draws - 1 + bits) / 8
        return least, least + (draws - 1) * bits / 8
    if mode == "topk":
        assert k is not None
        size = 4 + kept(k, vocabulary) * (2 + bits / 8)
        return size, size
    assert mode == "full"
    return 2.0 * vocabulary, 2.0 * vocabulary
