"""A Trainer whose finished models are plain checkpoints: what `save_model` and `push_to_hub` write.

Trainer writes one folder for both purposes. Resuming wants a mixture's experts under the names that the model has
(see `EngineTrainer._save`); other programs want the published names, no pickle, and the config the model came with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from preceptor.models.save import keep_sentencepiece
from preceptor.models.taps import replaced
from preceptor.training.engine import EngineTrainer


class FinishedModels(EngineTrainer):
    """Tells a model that is saved for others from one that is part of a checkpoint."""

    _writing = False
    """Whether a checkpoint is being written."""
    own_padding: tuple[Any, ...] = ()
    """The padding tokens of the model's config and generation config as they came."""

    def remember_padding(self) -> None:
        """Before Trainer, when training begins, writes the tokenizer's padding token into the model's configs."""
        self.own_padding = tuple(settings.pad_token_id for settings in self._settings())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # `push_to_hub` calls it as if for a checkpoint, which under FSDP and DeepSpeed has its weights elsewhere.
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        super().save_model(output_dir, _internal_call and (self._writing or not sharded))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if self._writing:
            super()._save(output_dir, state_dict)
            return
        with self._padding_kept():
            Trainer._save(self, output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # it is a pickle, which no reader of a model needs
            if self.processing_class is not None:
                keep_sentencepiece(self.processing_class, folder)

    def _settings(self) -> list[Any]:
        model = self.accelerator.unwrap_model(self.model)
        return [each for each in (model.config, getattr(model, "generation_config", None)) if each is not None]

    @contextmanager
    def _padding_kept(self) -> Iterator[None]:
        """A model padded with its end token says nothing of padding.

        Whoever loads it with that padding token in its config has an end token whose embedding learns no more.
        """
        with ExitStack() as kept:
            for settings, own in zip(self._settings(), self.own_padding, strict=False):
                ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
                if own is None and settings.pad_token_id in ends:
                    kept.enter_context(replaced(settings, "pad_token_id", None))
            yield
