"""A stage whose student is damaged: what is shown, where it stops, and how it goes on past it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import preceptor
from invariant.recipes import TRAINING, document
from preceptor.errors import RunFailed
from preceptor.recipe import Recipe, parse_recipe
from preceptor.report import write_report
from preceptor.report.figures.losses import terms_of
from preceptor.running.identity import same_result

SETTINGS = {**TRAINING, "num_train_epochs": 2, "save_steps": 2, "eval_steps": 2}  # 6 steps of 8 rows


def made(folder: Path, **stage: Any) -> Recipe:
    """`kd` of a student that cannot take the letter b, which most steps have."""
    settings = {"student": "damaged", "objective": [{"kind": "logits"}], "training": SETTINGS, **stage}
    return parse_recipe(document(folder, "runs", dropout=0.0, **settings), folder=folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    first = parse_recipe(document(tmp_path, "runs", dropout=0.0, training=SETTINGS), folder=tmp_path)
    for name in ("teacher", "student"):
        preceptor.run(first, only=name, log=lambda line: None)
    shutil.copytree(tmp_path / "runs/r/student/model", tmp_path / "damaged")
    (tmp_path / "damaged/preceptor_manifest.json").unlink(missing_ok=True)
    tokens = json.loads((tmp_path / "damaged/tokenizer.json").read_text())["model"]["vocab"]
    weights = load_file(tmp_path / "damaged/model.safetensors")
    weights["model.embed_tokens.weight"][tokens["b"]] = torch.nan
    save_file(weights, tmp_path / "damaged/model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_a_stage_stops_and_goes_on_past_what_stopped_it(folder: Path) -> None:
    said: list[str] = []
    with pytest.raises(RunFailed) as failed:
        preceptor.run(made(folder, max_nonfinite_steps=1), log=said.append)
    stage = folder / "runs/r/kd"
    bad = [json.loads(line) for line in (stage / "nonfinite.jsonl").read_text().splitlines()]
    assert bad[-1]["in_a_row"] == 2
    last = bad[-1]["step"]
    rows = sum(len(each["rows"]) for each in bad[-1]["micro_batches"])
    assert f"at step {last} as at the one before, and `max_nonfinite_steps` is 1; rows are listed in {stage}" in str(
        failed.value
    )
    assert str(failed.value).startswith(
        f"stage kd failed: the loss is not finite (logits; {rows} rows of other, shop; the student's own "
        "model.embed_tokens.weight is not finite) at step "
    )
    assert "goes on from there" in str(failed.value)
    assert any(line.startswith(f"kd: step {last - 1} is skipped: its loss is not finite (logits; ") for line in said)
    assert bad[0]["micro_batches"][0]["rows"][0]["origin"].startswith(str(folder))

    results = preceptor.run(made(folder, max_nonfinite_steps=10), log=said.append)["stages"]["kd"]
    assert results["steps"] == 6
    skipped = results["nonfinite_steps"]
    assert 1 < skipped <= 6
    assert results["skipped_steps"] == 0
    assert results["before"]["shop"]["logits"] is None  # not a number, and said to be none
    (sentence,) = (line for line in said if line.startswith("kd: 6 steps"))
    assert sentence.startswith(
        f"kd: 6 steps ({skipped} of them skipped, their loss or gradient not finite), held out: "
    )
    assert "logits on shop nan -> nan" in sentence
    assert any("held out: logits nan" in line for line in said)
    logged = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert sum(line.get("nonfinite_steps", 0) for line in logged) == skipped
    write_report([folder / "runs/r"], folder / "report", log=lambda line: None)
    assert terms_of(dict.fromkeys(logged[0])) == ["logits"]  # no curve of a count
    assert kept(folder, max_nonfinite_steps=3) == "kept"


def kept(folder: Path, **stage: Any) -> str:
    return str(preceptor.run(made(folder, **stage), log=lambda line: None)["stages"]["kd"]["status"])


def test_the_limit_is_no_part_of_what_a_stage_is(folder: Path) -> None:
    one = made(folder)
    assert one.stages["kd"].max_nonfinite_steps == 10  # type: ignore[union-attr]
    assert same_result(one, made(folder, max_nonfinite_steps=0), "kd")
    assert same_result(one, made(folder, training={**SETTINGS, "per_device_train_batch_size": 1}), "kd")
    assert not same_result(one, made(folder, training={**SETTINGS, "gradient_checkpointing": True}), "kd")
    balanced = [{"kind": "logits"}, {"kind": "router_balance"}]
    assert not same_result(
        made(folder, objective=balanced),
        made(folder, objective=balanced, training={**SETTINGS, "per_device_train_batch_size": 1}),
        "kd",
    )
