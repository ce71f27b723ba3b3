"""What is found wrong with rows to be scored before the stages that make the models run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import toys
from preceptor.cli import main


def test_rows_that_cannot_be_scored_are_found_before_any_stage_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found after the training, mending the file would make all of it run again."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"q{i}", "completion": "a", "metric": "exakt"} for i in range(5)]
    (tmp_path / "shop.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"model_type": "llama", **toys.TINY}
    stages = {
        "m": {"kind": "init", "config": config, "tokenizer": {"train_on": "shop", "vocab_size": 40}},
        "s": {"kind": "evaluate", "models": ["stage:m"], "on": ["shop"]},
    }
    (tmp_path / "r.yaml").write_text(
        json.dumps({"name": "r", "data": {"shop": {"path": "shop.jsonl", "holdout": 2}}, "stages": stages})
    )
    assert main(["run", "r.yaml"]) == 2
    assert "the metric 'exakt' is unknown (did you mean 'exact'?)" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
