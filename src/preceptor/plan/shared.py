"""What the stages of a recipe have in common, found once per plan: encoded rows, simulated steps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from preceptor.estimate.alike import Simulations

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preceptor.data.prepare import PreparedDataset
    from preceptor.recipe import DatasetSpec, OverlapSpec

_MOST = 8
"""Datasets whose rows are kept, the latest ones."""


class Shared:
    """What is kept from one stage for the next ones; `simulate` runs steps that are alike once."""

    def __init__(self) -> None:
        self.simulate = Simulations()
        self._prepared: dict[str, PreparedDataset] = {}

    def prepare(
        self,
        names: Sequence[str],
        specs: Mapping[str, DatasetSpec],
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        max_length: int,
        overlap: OverlapSpec | None,
        announce: Callable[[str], None],
        generated: Collection[str],
    ) -> dict[str, PreparedDataset]:
        """As `prepare_datasets`, of which all that was said of a dataset is said again."""
        from preceptor.data.prepare import prepare_datasets

        # Prompts are compared among all datasets, so all of them decide which rows of one are kept.
        all_ = {name: spec.model_dump_json() for name, spec in specs.items()}
        text = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.special_tokens_map]
        common = json.dumps([all_, text, seed, max_length, sorted(generated)], sort_keys=True, default=str)
        keys = {name: hashlib.sha256(f"{name} {overlap!r} {common}".encode()).hexdigest() for name in names}
        known = {name: self._prepared.pop(key) for name, key in keys.items() if key in self._prepared}
        for data in known.values():
            for line in data.announcements:
                announce(line)
        missing = [name for name in names if name not in known]
        if missing:
            known |= prepare_datasets(
                missing,
                specs,
                tokenizer,
                seed=seed,
                max_length=max_length,
                overlap=overlap,
                announce=announce,
                generated=generated,
            )
        self._prepared |= {keys[name]: known[name] for name in names}
        for key in list(self._prepared)[:-_MOST]:
            del self._prepared[key]
        return {name: known[name] for name in names}
