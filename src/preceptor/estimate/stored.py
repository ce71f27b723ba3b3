"""A stored teacher in a simulated step: as many numbers as a store would give, whatever they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from preceptor.estimate.setups import StoredSetup
from preceptor.signals import LayerShape, Needs, Part, Signal, TokenBatch, Wanted
from preceptor.stored_signals import SampledTokens, Stored, TopTokens, WholeDistributions
from preceptor.teachers.routing import Source, teach


class StoredStandIn:
    """Gives each target position what `setup` says; of drawn tokens, all are taken to differ, which is the most."""

    sharded = False

    def __init__(self, setup: StoredSetup, name: str) -> None:
        self._setup = setup
        self.name = name

    def __call__(self, batch: TokenBatch, needs: Needs) -> Signal:
        """As `StoredTeacher`."""
        sources = [Source(self.name, self, 1.0)]
        return teach(batch, needs, lambda route: sources)

    def observe(self, batch: TokenBatch, wanted: Wanted) -> Part:
        """A part that covers all rows of `batch`."""
        return Part(None, None, stored=self._stored(batch.targets.count), teacher=self.name)

    def _stored(self, N: int) -> Stored:
        setup = self._setup
        if setup.mode == "full":
            return WholeDistributions(torch.zeros(N, setup.vocabulary, dtype=torch.float16), setup.temperature)
        if setup.mode == "topk":
            K = min(setup.k, setup.vocabulary - 1)
            token_NK = torch.zeros(N, K, dtype=torch.int64)
            return TopTokens(token_NK, torch.zeros(N, K), torch.zeros(N), setup.temperature, setup.vocabulary)
        U = min(setup.draws, setup.vocabulary)
        index_U = torch.arange(N).repeat_interleave(U)
        first_N = torch.arange(N + 1) * U
        token_U = torch.zeros(N * U, dtype=torch.int64)
        share_U = torch.zeros(N * U)
        return SampledTokens(index_U, token_U, share_U, torch.zeros(N), first_N, setup.temperature, setup.vocabulary)

    def layer_shapes(self) -> list[LayerShape]:
        """None: a store has no attention."""
        return []

    def attention_shapes(self, routes: frozenset[int]) -> dict[str, list[LayerShape]]:
        """None: a store has no attention."""
        return {self.name: []}

    def check_routes(self, route_names: Sequence[str], followed: frozenset[int]) -> None:
        """It teaches any route."""
