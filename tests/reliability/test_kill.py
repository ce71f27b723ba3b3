"""benchmarks/kill_anywhere.py in small: a stage dies at calls of the file system in every way, and goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/kill_anywhere.py"


def killed(*arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "calls", *arguments], capture_output=True, text=True, timeout=280, env=environment
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def test_a_training_that_dies_somewhere_ends_as_one_that_did_not() -> None:
    """SIGKILL, a power cut that takes what was not flushed, Ctrl-C and SIGTERM, at some of its calls in turn."""
    found = killed("--stages", "start", "--turns", "--every", "16")
    start = found["stages"]["start"]
    assert found["wrong"] == []
    assert start["calls"] > 120, "every file and folder of three checkpoints and a model"
    ways = {way: start[way] for way in ("kill", "power", "int", "term")}
    assert min(ways.values()) >= 2
    assert start["left something half done"] > 0


def test_a_power_cut_after_a_stage_is_done_takes_nothing_of_it() -> None:
    """Its record is flushed last: a model that were not flushed before would be gone, and taken for whole."""
    found = killed("--stages", "student", "--ways", "power", "--begin", "38")
    assert found["wrong"] == []
    assert found["stages"]["student"]["power"] >= 3
