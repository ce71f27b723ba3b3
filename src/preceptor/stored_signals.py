"""What a teacher said once and is read back: its next-token distributions in the forms that are kept on disk.

Shape suffixes: N target positions, V vocabulary, K tokens kept per position, U distinct tokens drawn at all N together.
All are at one temperature, at which alone they may be used, and over the first V entries of the student's logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class SampledTokens:
    """Tokens drawn from the teacher: Σ share·f(token) is an unbiased estimate of the teacher's mean of any f."""

    index_U: Tensor
    """int64, the position among the N, ascending."""
    token_U: Tensor
    """int64 token ids."""
    share_U: Tensor
    """float32, the share of a position's draws that fell on the token; a position's shares sum to 1."""
    entropy_N: Tensor
    """float32, of the teacher's whole distribution, in nats."""
    first_N: Tensor
    """int64 [N+1] on the CPU: the U that belong to position i are those from `first_N[i]` to `first_N[i+1]`."""
    temperature: float
    vocabulary: int

    def __len__(self) -> int:
        return len(self.entropy_N)

    def of(self, start: int, stop: int) -> SampledTokens:
        """Positions `start` to `stop`."""
        if (start, stop) == (0, len(self)):
            return self
        mine = slice(int(self.first_N[start]), int(self.first_N[stop]))
        return SampledTokens(
            self.index_U[mine] - start,
            self.token_U[mine],
            self.share_U[mine],
            self.entropy_N[start:stop],
            self.first_N[start : stop + 1] - mine.start,
            self.temperature,
            self.vocabulary,
        )


@dataclass(frozen=True)
class TopTokens:
    """The K most probable tokens, and the mass of all others together."""

    token_NK: Tensor
    """int64 token ids, K < V."""
    log_prob_NK: Tensor
    """float32."""
    log_tail_N: Tensor
    """float32, log of the mass outside the K; −inf where there is none."""
    temperature: float
    vocabulary: int

    def __len__(self) -> int:
        return len(self.log_tail_N)

    def of(self, start: int, stop: int) -> TopTokens:
        """Positions `start` to `stop`."""
        mine = slice(start, stop)
        return TopTokens(
            self.token_NK[mine], self.log_prob_NK[mine], self.log_tail_N[mine], self.temperature, self.vocabulary
        )


@dataclass(frozen=True)
class WholeDistributions:
    """Every token's log-probability."""

    log_prob_NV: Tensor
    """float16, as stored: widened a chunk at a time."""
    temperature: float

    @property
    def vocabulary(self) -> int:
        return self.log_prob_NV.shape[1]

    def __len__(self) -> int:
        return len(self.log_prob_NV)

    def of(self, start: int, stop: int) -> WholeDistributions:
        """Positions `start` to `stop`."""
        return WholeDistributions(self.log_prob_NV[start:stop], self.temperature)


Stored: TypeAlias = SampledTokens | TopTokens | WholeDistributions


def sampled(
    counts_U: Tensor, token_U: Tensor, distinct_N: Tensor, entropy_N: Tensor, *, temperature: float, vocabulary: int
) -> SampledTokens:
    """From the distinct tokens of each position in turn (`distinct_N` of them) and how often each was drawn."""
    first_N = torch.zeros(len(distinct_N) + 1, dtype=torch.int64)
    torch.cumsum(distinct_N, 0, out=first_N[1:])
    index_U = torch.repeat_interleave(torch.arange(len(distinct_N)), distinct_N)
    draws_N = torch.zeros(len(distinct_N)).index_add_(0, index_U, counts_U.float())
    share_U = counts_U.float() / draws_N[index_U]
    return SampledTokens(index_U, token_U.long(), share_U, entropy_N.float(), first_N, temperature, vocabulary)


def to_device(stored: Stored, device: torch.device) -> Stored:
    """The same on another device."""
    if device.type == "cpu":
        return stored
    if isinstance(stored, SampledTokens):
        return replace(
            stored,
            index_U=stored.index_U.to(device),
            token_U=stored.token_U.to(device),
            share_U=stored.share_U.to(device),
            entropy_N=stored.entropy_N.to(device),
        )
    if isinstance(stored, TopTokens):
        return replace(
            stored,
            token_NK=stored.token_NK.to(device),
            log_prob_NK=stored.log_prob_NK.to(device),
            log_tail_N=stored.log_tail_N.to(device),
        )
    return WholeDistributions(stored.log_prob_NV.to(device), stored.temperature)
