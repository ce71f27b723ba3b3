"""The three forms in which a store keeps next-token distributions, and the bytes each takes.

A mode takes what it keeps from logits, packs one row of it into bytes, and unpacks rows into what losses read. Token
ids take as many bits as the vocabulary needs, not 16 or 32.

    sample  H (float16) + one bit per draw (is it another token than the one before?) + the distinct token ids
    topk    K token ids + K log-probabilities (float16) + log of the rest's mass (float32)
    full    V log-probabilities (float16)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from preceptor.stored_signals import SampledTokens, Stored, TopTokens, WholeDistributions, sampled
from preceptor.teachers.store_sizes import bytes_per_target, id_bits, kept

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
_LOWEST = -65504.0  # the smallest float16
_HIGHEST = 0.01  # of a log-probability: rounding may leave it above 0
_HIGHEST_BITS = int(np.float16(_HIGHEST).view(np.int16))


class DamagedRowError(ValueError):
    """What a row's bytes say cannot be: `number` of those that were unpacked, and why."""

    def __init__(self, why: str, number: int | None = None) -> None:
        super().__init__(why)
        self.number = number


@dataclass(frozen=True)
class Mode(ABC):
    """What is kept of a teacher's distributions over `vocabulary` tokens at `temperature`."""

    vocabulary: int
    temperature: float

    draws = 0
    """Random numbers that `take` wants for each position."""

    @abstractmethod
    def take(self, logits_nV: Tensor, uniforms_nD: Array) -> tuple[Array, ...]:
        """Of float32 logits at n positions, arrays of n entries each, in memory."""

    @abstractmethod
    def pack(self, taken: Sequence[Array]) -> bytes:
        """One row's arrays as bytes."""

    @abstractmethod
    def unpack(self, rows: Sequence[tuple[Bytes, int]]) -> Stored:
        """Rows, each its bytes and its number of target positions, behind one another.

        Raises:
            DamagedRowError: for bytes that `pack` does not make, such as the id of a token that there is not.
        """

    @abstractmethod
    def bytes_per_target(self) -> tuple[float, float]:
        """The least and the most that a target position takes, without its row's key."""

    def log_probs(self, logits_nV: Tensor) -> Tensor:
        """float32 [n, V] at the store's temperature."""
        return (logits_nV[:, : self.vocabulary].float() / self.temperature).log_softmax(-1)

    @property
    def bits(self) -> int:
        """Of one token id."""
        return id_bits(self.vocabulary)

    def _ids(self, data: Bytes, count: int, number: int) -> Array:
        """The ids of row `number`, which fill `data`: int64 [count]. Raises DamagedRowError."""
        if len(data) != -(-count * self.bits // 8):
            raise DamagedRowError(f"{len(data):,} bytes are not those of its {count:,} token ids", number)
        ids = _unpack_ids(data, count, self.bits)
        if count and (largest := int(ids.max())) >= self.vocabulary:
            raise DamagedRowError(f"it names token {largest:,} of {self.vocabulary:,}", number)
        return ids


@dataclass(frozen=True)
class SampleMode(Mode):
    """`draws` tokens drawn at each position, and the entropy: arXiv 2503.16870."""

    draws: int = 50

    def take(self, logits_nV: Tensor, uniforms_nD: Array) -> tuple[Array, ...]:
        log_probs_nV = self.log_probs(logits_nV)
        probs_nV = log_probs_nV.exp()
        entropy_n = -(probs_nV * log_probs_nV.clamp_min_(-1e30)).sum(-1)
        # Summed in float64: in float32 the last tokens of a large vocabulary would lose their share to rounding.
        cumulated_nV = probs_nV.double().cumsum(-1)
        points_nD = torch.from_numpy(uniforms_nD).to(cumulated_nV.device) * cumulated_nV[:, -1:]
        # To the right of ties: a token of probability 0 is never drawn.
        tokens_nD = torch.searchsorted(cumulated_nV, points_nD, right=True).clamp_max_(self.vocabulary - 1)
        return tokens_nD.int().cpu().numpy(), entropy_n.clamp_min_(0).half().cpu().numpy()

    def pack(self, taken: Sequence[Array]) -> bytes:
        tokens_TD, entropy_T = taken
        other_TD = np.ones(tokens_TD.shape, dtype=np.bool_)
        other_TD[:, 1:] = tokens_TD[:, 1:] != tokens_TD[:, :-1]
        runs = np.packbits(other_TD[:, 1:].ravel()).tobytes()
        return entropy_T.astype("<f2").tobytes() + runs + _pack_ids(tokens_TD[other_TD], self.bits)

    def unpack(self, rows: Sequence[tuple[Bytes, int]]) -> SampledTokens:
        entropies: list[Array] = []
        runs: list[Array] = []
        ids: list[Array] = []
        for data, T in rows:
            size = T * (self.draws - 1)
            first, second = 2 * T, 2 * T + -(-size // 8)
            if second > len(data):  # before anything is made of a size that a stranger wrote
                raise DamagedRowError(f"{len(data):,} bytes are too few for its {T:,} target positions", len(runs))
            other_Td = np.unpackbits(data[first:second], count=size).reshape(T, self.draws - 1)
            entropies.append(data[:first].view("<f2"))
            runs.append(other_Td)
            ids.append(self._ids(data[second:], T + int(np.count_nonzero(other_Td)), len(ids)))
        other_Nd = np.concatenate(runs)
        other_ND = np.ones((len(other_Nd), self.draws), dtype=np.uint8)
        other_ND[:, 1:] = other_Nd
        starts = np.flatnonzero(other_ND)
        entropy_N = torch.from_numpy(np.concatenate(entropies).astype(np.float32))
        _check_range(entropy_N, 0.0, -_LOWEST, "an entropy")
        return sampled(
            torch.from_numpy(np.diff(starts, append=other_ND.size)),
            torch.from_numpy(np.concatenate(ids)),
            torch.from_numpy(other_ND.sum(1, dtype=np.int64)),
            entropy_N,
            temperature=self.temperature,
            vocabulary=self.vocabulary,
        )

    def bytes_per_target(self) -> tuple[float, float]:
        return bytes_per_target("sample", vocabulary=self.vocabulary, draws=self.draws, k=None)


@dataclass(frozen=True)
class TopMode(Mode):
    """The `k` most probable tokens, and the mass of the rest."""

    k: int = 64

    @property
    def kept(self) -> int:
        """Tokens of a position."""
        return kept(self.k, self.vocabulary)

    def take(self, logits_nV: Tensor, uniforms_nD: Array) -> tuple[Array, ...]:
        log_probs_nV = self.log_probs(logits_nV)
        top = log_probs_nV.topk(self.kept, dim=-1)
        log_tail_n = log_probs_nV.scatter_(1, top.indices, -torch.inf).logsumexp(-1)
        kept = top.values.clamp_min(_LOWEST).half()
        return top.indices.int().cpu().numpy(), kept.cpu().numpy(), log_tail_n.cpu().numpy()

    def pack(self, taken: Sequence[Array]) -> bytes:
        tokens_TK, log_probs_TK, log_tail_T = taken
        numbers = log_tail_T.astype("<f4").tobytes() + log_probs_TK.astype("<f2").tobytes()
        return numbers + _pack_ids(tokens_TK.ravel(), self.bits)

    def unpack(self, rows: Sequence[tuple[Bytes, int]]) -> TopTokens:
        K = self.kept
        tails: list[Array] = []
        log_probs: list[Array] = []
        ids: list[Array] = []
        for data, T in rows:
            first, second = 4 * T, 4 * T + 2 * T * K
            if second > len(data):
                raise DamagedRowError(f"{len(data):,} bytes are too few for its {T:,} target positions", len(ids))
            tails.append(data[:first].view("<f4"))
            log_probs.append(data[first:second].view("<f2").reshape(T, K))
            ids.append(self._ids(data[second:], T * K, len(ids)).reshape(T, K))
        log_prob_NK = torch.from_numpy(np.concatenate(log_probs).astype(np.float32))
        log_tail_N = torch.from_numpy(np.concatenate(tails).astype(np.float32))
        _check_range(log_prob_NK, _LOWEST, _HIGHEST, "a log-probability")
        _check_range(log_tail_N, -math.inf, _HIGHEST, "the logarithm of the rest's mass")
        return TopTokens(
            torch.from_numpy(np.concatenate(ids)), log_prob_NK, log_tail_N, self.temperature, self.vocabulary
        )

    def bytes_per_target(self) -> tuple[float, float]:
        return bytes_per_target("topk", vocabulary=self.vocabulary, draws=None, k=self.k)


@dataclass(frozen=True)
class FullMode(Mode):
    """Whole distributions."""

    def take(self, logits_nV: Tensor, uniforms_nD: Array) -> tuple[Array, ...]:
        return (self.log_probs(logits_nV).clamp_min_(_LOWEST).half().cpu().numpy(),)

    def pack(self, taken: Sequence[Array]) -> bytes:
        return taken[0].astype("<f2").tobytes()

    def unpack(self, rows: Sequence[tuple[Bytes, int]]) -> WholeDistributions:
        # Concatenated even if alone: the bytes on disk are not ours to share.
        for number, (data, T) in enumerate(rows):
            if len(data) != 2 * T * self.vocabulary:
                raise DamagedRowError(f"{len(data):,} bytes are not those of its {T:,} target positions", number)
        log_probs = np.concatenate([data.view("<f2").reshape(T, self.vocabulary) for data, T in rows])
        log_prob_NV = log_probs.astype(np.float16, copy=False)
        # The bits of float16 are ordered: as whole numbers they are compared four times as fast. Beyond 0xfbff, that of
        # the smallest, are minus infinity and negative NaN; with the sign they are below 0, and what is positive last.
        if log_prob_NV.size and (
            log_prob_NV.view(np.uint16).max() > 0xFBFF or log_prob_NV.view(np.int16).max() > _HIGHEST_BITS
        ):
            _check_range(torch.from_numpy(log_prob_NV), _LOWEST, _HIGHEST, "a log-probability")
        return WholeDistributions(torch.from_numpy(log_prob_NV), self.temperature)

    def bytes_per_target(self) -> tuple[float, float]:
        return bytes_per_target("full", vocabulary=self.vocabulary, draws=None, k=None)


def mode_of(name: str, *, vocabulary: int, temperature: float, draws: int | None, k: int | None) -> Mode:
    """The mode that recipes and manifests call `name`: sample, topk or full."""
    if name == "sample":
        assert draws is not None
        return SampleMode(vocabulary, temperature, draws)
    if name == "topk":
        assert k is not None
        return TopMode(vocabulary, temperature, k)
    assert name == "full"
    return FullMode(vocabulary, temperature)


def _check_range(values: Tensor, least: float, most: float, what: str) -> None:
    """Raises DamagedRowError where a value is outside, or not a number."""
    if values.numel() == 0:
        return
    low, high = (float(each) for each in torch.aminmax(values))  # NaN where there is one
    if not (least <= low and high <= most):
        raise DamagedRowError(f"{what} is {low if not least <= low else high:g}")


def _pack_ids(ids: Array, bits: int) -> bytes:
    places = np.arange(bits - 1, -1, -1, dtype=np.int32)
    return np.packbits((ids.astype(np.int32)[:, None] >> places & 1).astype(np.uint8)).tobytes()


def _unpack_ids(data: Bytes, count: int, bits: int) -> Array:
    """int64 [count]."""
    wide = np.zeros((count, 32), dtype=np.uint8)
    wide[:, 32 - bits :] = np.unpackbits(data, count=count * bits).reshape(count, bits)
    return np.packbits(wide).view(">u4").astype(np.int64)
