"""lm-evaluation-harness from its own command line, on a finished model and on an adapter: the scores are ours."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

import sources
from interop import shop
from preceptor.cli import main
from preceptor.recipe import ModelSpec

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install '.[eval]'")

pytestmark = pytest.mark.slow
TASK = """\
task: prices
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an adapter on it, and a task in a file with its rows."""
    folder = tmp_path_factory.mktemp("scored")
    shop.write(folder / "model", seed=1)
    sources.write_adapter(folder / "adapter", ModelSpec(path=str(folder / "model")))
    draw = random.Random(4)
    rows = [
        {"question": f"what costs {word}?", "choices": [" 7", " 55", f" {word}", " 303"], "answer": draw.randrange(4)}
        for word in shop.WORDS * 4
    ]
    (folder / "suite").mkdir()
    (folder / "suite/prices.yaml").write_text(TASK)
    (folder / "suite/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(folder: Path, model: str, out: Path) -> list[str]:
    options = ["--tasks", "prices", "--include_path", str(folder / "suite"), "--device", "cpu", "--batch_size", "16"]
    options += ["--apply_chat_template", "--output_path", str(out)]
    return ["lm_eval", "--model", "hf", "--model_args", f"pretrained={folder / 'model'},dtype=auto{model}", *options]


def accuracies(out: Path) -> dict[str, float]:
    (file,) = out.rglob("results_*.json")
    found: dict[str, Any] = json.loads(file.read_text())["results"]["prices"]
    return {key: found[f"{key},none"] for key in ("acc", "acc_norm")}


def test_its_own_command_line_gives_our_scores(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lm_eval.__main__ import cli_evaluate

    monkeypatch.chdir(folder / "suite")  # data files of a task are looked for in the working directory
    adapter = f"stages.scores.models.adapted.adapter={folder / 'adapter'}"
    asked = ["evaluate", f"plain={folder / 'model'}", f"adapted={folder / 'model'}", adapter, "--tasks", "prices"]
    code = main([*asked, "--include", str(folder / "suite"), "--out", str(tmp_path / "ours"), "--json"])
    assert code == 0
    capsys.readouterr()
    ours = json.loads((tmp_path / "ours/scores/scores.json").read_text())["tasks"]["models"]

    for name, model in (("plain", ""), ("adapted", f",peft={folder / 'adapter'}")):
        monkeypatch.setattr(sys, "argv", command(folder, model, tmp_path / name))
        cli_evaluate()  # what the installed `lm_eval` calls

    for name in ("plain", "adapted"):
        mine = {"acc": ours[name]["prices"]["value"], "acc_norm": ours[name]["prices acc_norm"]["value"]}
        assert mine == accuracies(tmp_path / name)
    assert accuracies(tmp_path / "plain") != accuracies(tmp_path / "adapted")
