"""A teacher that was run once and is read back: its predictions from a store, at a small part of a live one's cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import numpy.typing as npt
from torch import Tensor

from preceptor.errors import InputError
from preceptor.models.tokenizers import template_facts, tokenizer_facts
from preceptor.signals import LayerShape, Needs, Part, Signal, TokenBatch, Wanted
from preceptor.stored_signals import to_device
from preceptor.teachers.routing import Source, teach
from preceptor.teachers.store import Store, expect
from preceptor.teachers.store_rows import row_key, target_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preceptor.data.chat import EncodedRow

_CAUSES = (
    "rows are found by their token ids, which change with `max_length`, the chat template, the tokenizer and the data; "
    "store these rows too, or train on those that were stored"
)


@dataclass(frozen=True)
class _Segment:
    """One row of the data as it lies in a batch."""

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    """Its target positions, from 0 at its own beginning."""


class StoredTeacher:
    """Teaches predictions that a `store` stage wrote; it has no attention to teach.

    Rows are found by their token ids wherever they lie in a batch: padded, packed, in any order and mixture.

    Args:
        folder: the store.
        tokenizer: the student's, with its chat template; compared with the store's. None compares nothing.
        name: how messages call it.
        verify: compare every shard's SHA-256 first; sizes are compared always.

    Raises:
        InputError: a store that is not whole, or of another tokenizer or chat template.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        name: str = "teacher",
        verify: bool = True,
    ) -> None:
        self.store = Store(Path(folder), verify=verify)
        self.name = name
        if tokenizer is not None:
            facts = {"tokenizer": tokenizer_facts(tokenizer), "template": template_facts(tokenizer)}
            expect(self.store.folder, self.store.manifest, facts, "the student's is")

    def __call__(self, batch: TokenBatch, needs: Needs) -> Signal:
        """What was stored of the rows of `batch`, as far as `needs` goes."""
        sources = [Source(self.name, self, 1.0)]
        return teach(batch, needs, lambda route: sources)

    def observe(self, batch: TokenBatch, wanted: Wanted) -> Part:
        """A part that covers all rows of `batch`.

        Raises:
            InputError: for a row that is not in the store.
        """
        if wanted.attention_layers:
            self._refuse_attention()
        if not wanted.logits:
            return Part(None, None, teacher=self.name)
        places = [self._place(segment) for segment in _segments(batch)]
        stored = to_device(self.store.read(places), batch.input_ids.device)
        assert len(stored) == batch.targets.count
        return Part(None, None, stored=stored, teacher=self.name)

    def _place(self, segment: _Segment) -> tuple[int, int]:
        ids = ", ".join(map(str, segment.ids[:8]))
        more = ", …" if len(segment.ids) > 8 else ""
        where = f"a row of {len(segment.ids)} tokens ({ids}{more})"
        return self._find(where, segment.ids, segment.positions)

    def _find(self, where: str, ids: npt.NDArray[np.integer], positions: npt.NDArray[np.integer]) -> tuple[int, int]:
        key = row_key(ids)
        place = self.store.find(key, target_digest(positions))
        if place is not None:
            if (count := self.store.count(place)) != len(positions):
                raise InputError(
                    f"{self.name}: {where} has {len(positions):,} targets, and the store {str(self.store.folder)!r} "
                    f"holds {count:,} of it, so it is damaged; copy it again, or write it anew"
                )
            return place
        folder = str(self.store.folder)
        if self.store.knows(key):
            raise InputError(
                f"{self.name}: {where} is in the store {folder!r} with other targets than it is learned with; give "
                "both stages, and the dataset in both, the same `targets`"
            )
        raise InputError(f"{self.name}: {where} is not in the store {folder!r}; {_CAUSES}")

    def check_rows(self, rows: Iterable[EncodedRow]) -> None:
        """Makes sure, before any training, that the store has these rows.

        Raises:
            InputError: naming the first that it has not, and why that may be.
        """
        for row in rows:
            positions = np.flatnonzero(row.is_target[1:])
            where = f"{row.origin} ({len(row)} tokens)"
            self._find(where, row.input_ids, positions)

    @property
    def sharded(self) -> bool:
        """Processes read by themselves."""
        return False

    def _refuse_attention(self) -> NoReturn:
        raise InputError(
            f"{self.name}: is stored, and attention is distilled from a live teacher only; remove the attention term, "
            "give it `routes` without this teacher, or name the model itself as the teacher"
        )

    def layer_shapes(self) -> list[LayerShape]:
        """Raises InputError: it can give none."""
        self._refuse_attention()

    def attention_shapes(self, routes: frozenset[int]) -> dict[str, list[LayerShape]]:
        """Raises InputError: it can give none."""
        return {self.name: self.layer_shapes()}

    def check_routes(self, route_names: Sequence[str], followed: frozenset[int]) -> None:
        """It teaches any route."""


def _segments(batch: TokenBatch) -> list[_Segment]:
    """The rows with targets, in the order of the batch's target positions."""
    ids_BS, segment_BS, target_BS = (_array(each) for each in (batch.input_ids, batch.segment_ids, batch.target_mask))
    found = []
    for ids_S, segment_S, target_S in zip(ids_BS, segment_BS, target_BS, strict=True):
        edges = [0, *(np.flatnonzero(np.diff(segment_S)) + 1).tolist(), len(segment_S)]
        for start, stop in pairwise(edges):
            if target_S[start:stop].any():
                found.append(_Segment(ids_S[start:stop], np.flatnonzero(target_S[start:stop])))
    return found


def _array(tensor: Tensor) -> npt.NDArray[np.int64]:
    array: npt.NDArray[np.int64] = tensor.cpu().numpy()
    return array
