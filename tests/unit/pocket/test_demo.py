"""The demo end to end at toy length: it writes what it says, keeps what is done, refuses what it cannot do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from preceptor.errors import InputError
from preceptor.pocket.demo import main
from preceptor.pocket.study import METHODS, NOISE, TEACHER, Size, study_recipe, write_study
from preceptor.pocket.tasks import TASKS, make_rows
from preceptor.pocket.worker import run_method
from preceptor.recipe import load_recipe

TOY = Size(steps=4, rows_per_step=8, epochs=2)


@pytest.mark.slow
def test_the_demo_writes_its_report_and_figures_and_keeps_what_is_done(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    lines: list[str] = []
    report = main(out, False, None, lines.append, TOY)
    assert list(report["models"]) == ["teacher", *METHODS]
    assert report["models"]["teacher"]["general"]["score"] >= 0.95
    assert report["models"]["teacher"]["kl_teacher"] == pytest.approx(0, abs=1e-6)
    for name in METHODS:
        entry = report["models"][name]
        assert set(entry["tasks"]) == set(TASKS)
        assert entry["kl_teacher"] > 0.5
        assert entry["attention_kl"] > 0.05
    # The other losses of a run are measured although they are not minimised.
    logged = (out / "seed-43/runs/kd_prediction/kd_prediction/metrics.jsonl").read_text().splitlines()
    assert all(json.loads(logged[-1])[key] > 0.05 for key in ("logits", "attention", "grad_norm"))
    for figure in report["figures"]:
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
    saved = json.loads((out / "report.json").read_text())
    assert saved["models"] == report["models"]
    assert (out / "results" / "seed-43.json").exists()
    assert "KD, both" in lines[-1]
    # Again: nothing is trained twice and the scores are the same.
    again: list[str] = []
    scores = run_method(out / "seed-43" / "recipe.yaml", "sft", again.append)
    assert scores["score"] == report["models"]["sft"]["general"]["score"]
    assert sum("kept" in line for line in again) == 2
    # Another length in the same folder is refused, and the old report stays.
    with pytest.raises(InputError, match=r"holds a demo of other settings \(steps\); give another folder with --out"):
        main(out, False, None, again.append, Size(steps=5, rows_per_step=8, epochs=2))
    assert json.loads((out / "report.json").read_text()) == saved


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        main(tmp_path / "file" / "demo", False, None, lambda line: None, TOY)


def test_methods_differ_in_objective_and_learning_rate_alone(tmp_path: Path) -> None:
    recipe = load_recipe(write_study(tmp_path, 43, TOY))
    assert list(recipe.stages) == ["student", *METHODS]
    stages = study_recipe(43, TOY)["stages"]
    common = []
    for name in METHODS:
        stage = {**stages[name], "training": {**stages[name]["training"]}}
        assert stage["training"].pop("learning_rate") == METHODS[name].learning_rate
        common.append({key: stage[key] for key in ("data", "rows_per_step", "max_length", "training")})
        assert set(stage) - set(common[0]) <= {"kind", "model", "student", "teacher", "objective"}
    assert all(each == common[0] for each in common)


def test_public_rows_are_noisy_and_test_rows_clean(tmp_path: Path) -> None:
    write_study(tmp_path, 43, TOY)
    public = [json.loads(line) for line in (tmp_path / "public.jsonl").read_text().splitlines()]
    test = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert public == make_rows("train", 16, 43, noise=NOISE)
    assert test == make_rows("test", len(test), 43)
    assert not {row["messages"][0]["content"] for row in public} & {row["messages"][0]["content"] for row in test}


def test_the_shipped_weights_are_small_and_their_recipe_describes_them() -> None:
    weights = [path for path in TEACHER.parent.rglob("*") if path.is_file() and path.suffix == ".safetensors"]
    assert sum(path.stat().st_size for path in weights) < 8_000_000
    config = json.loads((TEACHER / "config.json").read_text())
    recipe_path = Path(__file__).parents[3] / "recipes" / "pocket_teacher.yaml"
    stated = yaml.safe_load(recipe_path.read_text())["stages"]["untrained"]["config"]
    assert {key: config[key] for key in stated} == stated
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (8, 2)
    assert not list(TEACHER.glob("*.bin"))
