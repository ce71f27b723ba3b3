"""Whether two trainings gave the same, to the bit; and a bit that a disk has lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preceptor.training.metrics import TIMING


def log_lines(stage: Path, *without: str) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without what times the training, and without the fields named."""
    found = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in (*TIMING, *without)} for line in found]


def same(got: Any, expected: Any, where: str = "") -> None:
    """Equal to the bit, through dictionaries, lists and tensors."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key in expected:
            same(got[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected), where
        for i, each in enumerate(expected):
            same(got[i], each, f"{where}[{i}]")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected), where
    else:
        assert np.array_equal(got, expected), where


def same_checkpoint(got: Path, expected: Path) -> None:
    weights = next(expected.glob("*model.safetensors")).name
    assert (got / weights).read_bytes() == (expected / weights).read_bytes()
    for name in ("optimizer.pt", "scheduler.pt"):
        same(torch.load(got / name, weights_only=True), torch.load(expected / name, weights_only=True), name)
    assert json.loads((got / "metrics_state.json").read_text()) == json.loads(
        (expected / "metrics_state.json").read_text()
    )


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
