"""The optimiser of a simulated step: transformers' choice of class, and stand-ins for those of 8-bit states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

_BLOCK = 256  # values that share one float32 scale
_SMALL = 4096  # elements up to which states stay in float32 (bitsandbytes' `min_8bit_size`)


def make_optimizer(arguments: Any, model: nn.Module, trainable: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that `arguments.optim` names.

    Raises:
        Exception: of any class, where transformers cannot make it here.
    """
    from transformers import Trainer

    name = str(getattr(arguments.optim, "value", arguments.optim))
    if "8bit" in name or "4bit" in name:
        moments = 1 if any(kind in name for kind in ("lion", "rmsprop")) else 3 if "ademamix" in name else 2
        embeddings: list[Any] = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
        whole = [] if "torch" in name else embeddings  # as transformers tells bitsandbytes, and not torchao
        return PackedOptimizer(trainable, moments=moments, bits=4 if "4bit" in name else 8, whole=whole)
    cls, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    made: torch.optim.Optimizer = cls(trainable, **options)
    return made


class PackedOptimizer(torch.optim.Optimizer):
    """Keeps `moments` states per parameter in 8 (or 4) bits with a float32 scale for 256 values (arXiv 2110.02861).

    Those of small parameters, and of the ones in `whole`, stay in float32.
    """

    def __init__(
        self, params: Sequence[nn.Parameter], *, moments: int, bits: int, whole: Sequence[nn.Parameter] = ()
    ) -> None:
        super().__init__(params, {})
        self._moments, self._bits, self._whole = moments, bits, {id(parameter) for parameter in whole}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                for number in range(self._moments if not state else 0):
                    count = parameter.numel()
                    if count < _SMALL or id(parameter) in self._whole:
                        state[f"moment_{number}"] = torch.zeros_like(parameter)
                        continue
                    state[f"moment_{number}"] = torch.zeros(count * self._bits // 8, dtype=torch.uint8)
                    state[f"scale_{number}"] = torch.zeros(-(-count // _BLOCK))
                parameter.add_(parameter.grad)
