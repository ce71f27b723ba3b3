"""Teachers turn a batch into a signal.

They are imported when first used: what only looks at a store starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preceptor.teachers.adapter import AdapterTeacher
    from preceptor.teachers.model import ModelTeacher
    from preceptor.teachers.routed import RoutedTeacher
    from preceptor.teachers.stored import StoredTeacher

_HOMES = {"AdapterTeacher": "adapter", "ModelTeacher": "model", "RoutedTeacher": "routed", "StoredTeacher": "stored"}

__all__ = ["AdapterTeacher", "ModelTeacher", "RoutedTeacher", "StoredTeacher"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
