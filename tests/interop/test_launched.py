"""`accelerate launch` on a script with DistillationTrainer: two processes train what one would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from interop import launched, shop

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]


def test_two_processes_of_accelerate_launch(tmp_path: Path) -> None:
    shop.write(tmp_path / "s", seed=1)
    shop.write(tmp_path / "t", seed=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    program = Path(sys.executable).with_name("accelerate")
    script = [str(TESTS / "interop/launched.py"), str(tmp_path), str(tmp_path / "two"), "2"]
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [program, "launch", *options, *script], capture_output=True, text=True, timeout=280,
        env={**clean, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("processes: 2") == 2
    alone = launched.trainer(tmp_path, tmp_path, 4)
    start = {name: value.clone() for name, value in alone.model.state_dict().items()}
    alone.train()
    state = json.loads((tmp_path / "two/state.json").read_text())
    together, mine = (
        [(line["loss"], line["targets"]) for line in lines if "loss" in line]
        for lines in (state["log_history"], alone.state.log_history)
    )
    assert [targets for _, targets in together] == [targets for _, targets in mine]
    assert [loss for loss, _ in together] == pytest.approx([loss for loss, _ in mine], rel=1e-6)
    saved = load_file(tmp_path / "two/student/model.safetensors")
    for name, value in alone.model.state_dict().items():
        moved = (value - start[name]).abs().max()
        assert torch.allclose(saved[name], value, rtol=0, atol=float(1e-4 * moved + 1e-8)), name
