"""`training.full_determinism`: what transformers sets for the whole process, set for one stage only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from preceptor.system.environment import environment_kept

_VARIABLES = (
    "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG",
    "ASCEND_LAUNCH_BLOCKING",
    "HCCL_DETERMINISTIC",
    "FLASH_ATTENTION_DETERMINISTIC",
)


@contextmanager
def determinism_ends() -> Iterator[None]:
    """Puts back after the block what `transformers.enable_full_determinism` sets in the process.

    A later stage would otherwise be slowed down, and fail on a GPU at the first operation that has no deterministic
    form there (a cumulated sum of floats, in storing and sampling).
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        with environment_kept(*_VARIABLES):
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=only_warns)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
