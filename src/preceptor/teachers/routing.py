"""Which teacher is run on which rows: every teacher on its own, and on no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from preceptor.errors import InputError, RunFailed
from preceptor.signals import LayerShape, Needs, Part, Signal, TokenBatch, Wanted


class Observable(Protocol):
    """One teacher that can be asked about rows: a model that is run on them, or a store they are looked up in."""

    @property
    def name(self) -> str:
        """How messages call it."""

    @property
    def sharded(self) -> bool:
        """Whether all processes must call it together."""

    def observe(self, batch: TokenBatch, wanted: Wanted) -> Part:
        """A part that covers all rows of `batch`."""

    def layer_shapes(self) -> list[LayerShape]:
        """The layers whose attention it can give; raises InputError when it can give none."""


@dataclass(frozen=True)
class Source:
    """A teacher of a route, under its name, with its share of what the route's rows follow."""

    name: str
    model: Observable
    weight: float


def teach(
    batch: TokenBatch,
    needs: Needs,
    sources_of: Callable[[int], Sequence[Source]],
    route_names: Sequence[str] | None = None,
) -> Signal:
    """One part for each teacher that has rows in `batch`.

    Rows without a target and rows of routes that no term teaches are given to nobody. Every process goes through the
    same list of possible calls in the same order: a sharded teacher without rows here is called with one row all the
    same, whose result is dropped, because the other processes wait for its share of the weights.

    Raises:
        RunFailed: naming the teacher that failed, and the routes of its rows where they have `route_names`.
    """
    calls: dict[tuple[Source, Wanted], list[int]] = {}
    for route in sorted(needs.logits | needs.attention):
        for source in sources_of(route):
            if wanted := needs.of(route, source.name):
                calls.setdefault((source, wanted), []).append(route)
    parts = []
    taught_B = batch.target_mask.any(1)
    for (source, wanted), routes in calls.items():
        mine_B = taught_B & torch.isin(batch.routes, torch.tensor(routes, device=batch.routes.device))
        rows = mine_B.nonzero().squeeze(1)
        if rows.numel() == 0:
            if source.model.sharded:
                _observe(source, batch.select(rows.new_zeros(1)), wanted, "")
            continue
        whole = rows.numel() == mine_B.numel()
        where = "" if route_names is None else f" (route {' and '.join(route_names[route] for route in routes)})"
        part = _observe(source, batch if whole else batch.select(rows), wanted, where)
        targets = None if whole else mine_B[batch.targets.row_N].nonzero().squeeze(1)
        parts.append(
            replace(part, rows=None if whole else rows, targets=targets, teacher=source.name, weight=source.weight)
        )
    return Signal(tuple(parts))


def _observe(source: Source, batch: TokenBatch, wanted: Wanted, where: str) -> Part:
    try:
        return source.model.observe(batch, wanted)
    except (InputError, RunFailed):
        raise
    except Exception as error:  # a model may be anything
        said = " ".join(f"{type(error).__name__}: {error}".split())
        B, S = batch.input_ids.shape
        raise RunFailed(
            f"{source.name}{where} failed on {B} row{'s' * (B != 1)} of {S:,} tokens ({said[:300]})"
        ) from error
