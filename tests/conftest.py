"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Triton reads this when it is imported: without a GPU, its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Toy tensors gain nothing from threads, and workers of pytest-xdist would fight over the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data, tokenizers and weights: PRECEPTOR_DATA, else `shared/data` beside the repository."""
    given = os.environ.get("PRECEPTOR_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real data: {folder} is not a folder; set PRECEPTOR_DATA to the data folder")
    return folder
