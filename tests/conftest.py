"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data, tokenizers and weights: PRECEPTOR_DATA, else `shared/data` beside the repository."""
    given = os.environ.get("PRECEPTOR_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real data: {folder} is not a folder; set PRECEPTOR_DATA to the data folder")
    return folder
