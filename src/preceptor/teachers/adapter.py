"""Teachers that share base weights: one copy in memory, however many of them there are.

A domain expert is often a LoRA adapter on the very model that is the reference, and the reference the base under a
student that trains an adapter of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from preceptor.signals import LayerShape, Part, TokenBatch, Wanted
from preceptor.teachers.model import ModelTeacher

if TYPE_CHECKING:
    from peft import PeftModel


class AdapterTeacher(ModelTeacher):
    """A PEFT model with one of its adapters active while it teaches, or with none.

    Afterwards the model is as before: the same adapter active, training or evaluating, the same parameters trainable.

    Args:
        model: the PEFT model that other teachers, or the student, are made of too.
        adapter: PEFT's name of the adapter; None switches them off.
        name: how messages call it.
        compute: bfloat16 or float16 to teach under autocast, where the shared weights are a student's in float32 but
            the teacher's checkpoint is not.
    """

    def __init__(
        self, model: PeftModel, adapter: str | None, *, name: str = "teacher", compute: torch.dtype | None = None
    ) -> None:
        # Not ModelTeacher's own: what is shared with a student stays trainable.
        self.model = self._peft = model
        self.name = name
        self.adapter = adapter
        self.compute = compute

    def _observe(self, batch: TokenBatch, wanted: Wanted, device: torch.device) -> Part:
        low = self.compute in (torch.bfloat16, torch.float16)
        with self._active(), torch.autocast(device.type, dtype=self.compute if low else None, enabled=low):
            return super()._observe(batch, wanted, device)

    def layer_shapes(self) -> list[LayerShape]:
        with self._active():
            return super().layer_shapes()

    @contextmanager
    def _active(self) -> Iterator[None]:
        model = self._peft
        training, before = model.training, model.active_adapter
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.eval()  # a student's dropout is not for its teacher
        try:
            if self.adapter is None:
                with model.disable_adapter():
                    yield
            else:
                model.set_adapter(self.adapter)
                yield
        finally:
            if self.adapter is not None:
                model.set_adapter(before)
            model.train(training)
            # PEFT makes whatever adapter it switches on trainable.
            model.requires_grad_(False)
            for parameter in trainable:
                parameter.requires_grad_(True)
