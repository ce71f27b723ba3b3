"""benchmarks/gpu.py, rehearsed: a script that a GPU sees for minutes must not fail there for the first time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def rehearse(section: str, out: Path) -> dict[str, Any]:
    from gpu_clock import Clock, Deadline
    from gpu_report import Report

    report = Report(out / "gpu.json")
    module = __import__(f"gpu_{section}")
    module.run(report, Clock(torch.device("cpu")), Deadline(time.time() + 100), rehearse=True, rate=1.0)
    found: dict[str, Any] = report.read()[section]
    assert found["error"] is None
    return found


def test_the_attention_kernel_is_timed_beside_its_peers(tmp_path: Path) -> None:
    rows = {row["way"]: row for row in rehearse("attention", tmp_path)["rows"]}
    for way in ("triton", "torch", "maps", "flash"):
        for suffix in ("", " + grads"):
            assert rows[way + suffix]["note"] is None, rows[way + suffix]
            assert rows[way + suffix]["median_s"] > 0
            assert rows[way + suffix]["tflops"] > 0
    apart = [rows["agreement"][name] for name in ("value", "dq", "dk")]
    assert max(apart) < 2e-2
    assert max(apart) > 0, "one implementation was timed twice"


def test_what_does_not_fit_says_so_and_the_others_go_on() -> None:
    from gpu_clock import Clock, Deadline, measure

    def large() -> None:
        raise torch.OutOfMemoryError("too large")

    found = measure({"large": large, "small": lambda: None}, Clock(torch.device("cpu")), Deadline(time.time() + 9))
    assert found["large"].figures()["note"] == "does not fit"
    assert found["large"].figures()["median_s"] is None
    assert len(found["small"].seconds) == 20
    assert found["small"].against(found["large"]) is None


def test_the_prediction_loss_is_timed_and_a_missing_peer_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_linear

    def missing(*_: object) -> None:
        raise ImportError("not here")

    monkeypatch.setattr(gpu_linear, "PEERS", {"liger": missing})
    monkeypatch.setattr(gpu_linear, "REHEARSED", gpu_linear.REHEARSED[:1])
    rows = {row["way"]: row for row in rehearse("linear", tmp_path)["rows"] if row["beta"] == 0}
    assert rows["liger"]["note"] == "not importable: not here"
    for way in ("ours", "ours, torch", "dense"):
        assert rows[way]["note"] is None, rows[way]
        assert rows[way]["median_s"] > 0


def test_whole_steps_are_timed_with_each_teacher(tmp_path: Path) -> None:
    rows = rehearse("steps", tmp_path)["rows"]
    assert len({row["teacher"] for row in rows}) == 2
    for row in rows:
        assert not row.get("note"), row
        if row["way"] in ("prediction", "prediction_attention"):
            assert row["ratio"] > 0
    assert {row["way"] for row in rows} >= {"teacher_forward", "sft", "prediction", "prediction_attention", "optimiser"}


def test_wrong_gradients_do_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_checks

    monkeypatch.setattr(gpu_checks, "pytest_says", lambda *args, **options: None)
    rows = rehearse("checks", tmp_path)["rows"]
    assert [row["check"].split()[0] for row in rows] == ["attention", "linear", "linear"]
    assert all(row["passed"] for row in rows), rows

    monkeypatch.setattr(gpu_checks, "TOLERANCE", dict.fromkeys(gpu_checks.TOLERANCE, 1e-12))
    again = rehearse("checks", tmp_path / "strict")["rows"]
    assert not any(row["passed"] for row in again)


def test_layers_that_share_weights_are_the_layers_they_stand_for() -> None:
    from gpu_models import TINY, TINY_EXPERTS, gigabytes, make_teacher

    device = torch.device("cpu")
    whole, label = make_teacher(TINY_EXPERTS, device, "shared", own_layers=2)
    shared, _ = make_teacher(TINY_EXPERTS, device, "shared", own_layers=1)
    assert "2 layers" in label
    assert len(shared.model.layers) == TINY.layers
    assert [layer.self_attn.layer_idx for layer in shared.model.layers] == [0, 1]
    first, second = (dict(layer.named_parameters()) for layer in shared.model.layers)
    assert all(first[name] is second[name] for name in first)
    assert gigabytes(shared) < gigabytes(whole)


def test_the_sizes_are_those_of_the_models_they_are_named_after() -> None:
    from gpu_models import MISTRAL, MIXTRAL

    # Published: 7.24e9 and 46.7e9 parameters, 12.9e9 of them active.
    for sizes, active, expected in ((MISTRAL, False, 7.24e9), (MIXTRAL, False, 46.7e9), (MIXTRAL, True, 12.9e9)):
        outside = 2 * sizes.vocabulary * sizes.width
        assert sizes.body_parameters(active=active) + outside == pytest.approx(expected, rel=2e-3)


def test_sections_end_in_time_and_one_that_dies_takes_none_with_it(tmp_path: Path) -> None:
    import gpu

    ends = gpu.schedule(["environment", "checks", "steps"], 100)
    assert list(ends) == ["environment", "checks", "steps"]
    assert ends["steps"] == pytest.approx(100)
    assert ends["environment"] < ends["checks"] < ends["steps"]

    environment = {**os.environ, "PRECEPTOR_KERNELS": "auto", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / "gpu.py"), "--rehearse", "--sections", "environment"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path), "--minutes", "1"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "TFLOP/s" in done.stdout
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["environment"]["rows"][0]["rehearsed"] is True


def test_it_needs_nothing_that_only_recipes_and_data_need() -> None:
    """A GPU machine may have torch, transformers and triton, and no more."""
    modules = ["gpu_checks", "gpu_attention", "gpu_linear", "gpu_steps", "gpu_plan", "gpu_tables"]
    lines = [
        "import sys",
        "sys.modules.update(dict.fromkeys(['pydantic', 'datasets', 'trl', 'bitsandbytes', 'rich', 'openai']))",
        f"sys.path.insert(0, {str(FOLDER)!r})",
        "import gpu",
        "gpu.prepare(True)",
        f"import {', '.join(modules)}",
        "import preceptor.estimate.step, preceptor.models.quantized_experts",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_error_in_a_section_is_kept_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu
    import gpu_attention
    from gpu_report import Report
    from gpu_tables import tables

    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("a kernel broke the device")

    monkeypatch.setattr(gpu_attention, "run", broken)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    gpu.run_section("attention", tmp_path, time.time() + 10, rehearse=True)
    found = Report(tmp_path / "gpu.json").read()
    assert "a kernel broke the device" in found["attention"]["error"]
    assert "`attention` did not end: RuntimeError: a kernel broke the device" in tables(found)
