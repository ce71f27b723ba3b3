"""Distils a large instruct model into a small one, then teaches it a domain without losing what it knew.

The public names are those listed in `__all__`; everything else is private. They are imported when first
used, so that `import preceptor` and the command line start without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preceptor.data.collator import Collator
    from preceptor.data.prepare import load_rows
    from preceptor.objective import Attention, Logits, NextToken, Objective, RouterBalance
    from preceptor.recipe import load_recipe
    from preceptor.runs import run
    from preceptor.signals import TokenBatch
    from preceptor.system import live
    from preceptor.teachers import ModelTeacher, RoutedTeacher, StoredTeacher
    from preceptor.trainer import DistillationTrainer

__version__ = "0.1.0"

_HOMES = {
    "Attention": "preceptor.objective",
    "Collator": "preceptor.data.collator",
    "DistillationTrainer": "preceptor.trainer",
    "Logits": "preceptor.objective",
    "ModelTeacher": "preceptor.teachers",
    "NextToken": "preceptor.objective",
    "Objective": "preceptor.objective",
    "RoutedTeacher": "preceptor.teachers",
    "RouterBalance": "preceptor.objective",
    "StoredTeacher": "preceptor.teachers",
    "TokenBatch": "preceptor.signals",
    "live": "preceptor.system.live",
    "load_rows": "preceptor.data.prepare",
    "load_recipe": "preceptor.recipe",
    "run": "preceptor.runs",
}

__all__ = [
    "Attention",
    "Collator",
    "DistillationTrainer",
    "Logits",
    "ModelTeacher",
    "NextToken",
    "Objective",
    "RoutedTeacher",
    "RouterBalance",
    "StoredTeacher",
    "TokenBatch",
    "__version__",
    "live",
    "load_recipe",
    "load_rows",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'preceptor' has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    return home if _HOMES[name].endswith(f".{name}") else getattr(home, name)
