"""What names a row in a store, and the random numbers its draws are made of.

Both depend on the row's tokens and on nothing else (order, batch, dataset, process), so that a store can be written by
any number of processes and read in any mixture.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import numpy.typing as npt

KEY_BYTES = 32
DIGEST_BYTES = 8
_WORDS = 4  # random 64-bit words that Philox makes at each value of its counter


def row_key(input_ids: npt.NDArray[np.integer]) -> bytes:
    """SHA-256 of the token ids as little-endian int32: 32 bytes."""
    return hashlib.sha256(input_ids.astype("<i4").tobytes()).digest()


def target_digest(positions: npt.NDArray[np.integer]) -> bytes:
    """The first 8 bytes of the SHA-256 of a row's target positions: one row may be learned in two ways."""
    return hashlib.sha256(positions.astype("<i4").tobytes()).digest()[:DIGEST_BYTES]


def uniforms(seed: int, key: bytes, positions: npt.NDArray[np.integer], draws: int) -> npt.NDArray[np.float64]:
    """[positions, draws] numbers in [0, 1), ascending, one in each `draws`-th part of the interval.

    Stratified: each is uniform in its own part, so a mean over them is unbiased as one over independent numbers is, and
    varies less. Those of a position depend on (seed, key, position) alone: each position has its own stretch of one
    counter-based generator.
    """
    if len(positions) == 0:
        return np.empty((0, draws))
    stretch = -(-draws // _WORDS)
    first, last = int(positions[0]), int(positions[-1])
    digest = hashlib.sha256(struct.pack("<Q", seed) + key).digest()
    source = np.random.Philox(key=int.from_bytes(digest[:16], "little"), counter=first * stretch)
    random = np.random.Generator(source).random((last - first + 1, stretch * _WORDS))
    # Rounding must not reach 1, beyond which there is no token.
    return np.minimum((random[positions - first, :draws] + np.arange(draws)) / draws, 1 - 2.0**-40)
