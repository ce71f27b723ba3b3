"""The demo end to end at toy length: it writes what it says, keeps what is done, refuses what it cannot do."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import yaml

from preceptor.errors import InputError, RunFailed
from preceptor.pocket.demo import main
from preceptor.pocket.methods import APART, DISTILLED, METHODS, TEACHER
from preceptor.pocket.shop import SHOP, make_shop_rows
from preceptor.pocket.study import NOISE, Size, study_recipe, write_study
from preceptor.pocket.tasks import TASKS, make_rows
from preceptor.pocket.worker import run_stage
from preceptor.recipe import load_recipe

TOY = Size(steps=4, rows_per_step=8, epochs=2, shop_rows=24, expert_steps=2, align_steps=2)
LONGER = Size(steps=5, rows_per_step=8, epochs=2, shop_rows=24, expert_steps=2, align_steps=2)
SHOWN = tuple(name for name, method in METHODS.items() if method.part in ("distil", "align"))
FIRST_STAGE = tuple(name for name in DISTILLED if name in SHOWN)


@pytest.mark.slow
def test_the_demo_writes_its_report_and_figures_and_keeps_what_is_done(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    lines: list[str] = []
    report = main(out, False, None, lines.append, TOY)
    assert list(report["models"]) == ["teacher", *SHOWN]
    assert report["models"]["teacher"]["general"]["score"] >= 0.95
    assert report["models"]["teacher"]["domain"]["score"] <= 0.05, "the shop is nothing the teacher could know"
    for name in SHOWN:
        entry = report["models"][name]
        assert set(entry["tasks"]) == {*TASKS, *SHOP}
        assert ("kl_teacher" in entry) == (name in DISTILLED)
        assert entry["retention"] is None or entry["kl_reference"]["value"] >= -1e-6
    for name in FIRST_STAGE:
        assert report["models"][name]["kl_teacher"] > 0.5
        assert report["models"][name]["attention_kl"] > 0.05
    # Every aligned model saw the same rows of the shop, and a step's teachers only their own.
    stages = {stage["name"]: stage for stage in report["runs"][0]["stages"]}
    mixture = stages["dae"]["data"]
    assert mixture == stages["replay"]["data"]
    assert mixture["shop"]["rows"] == 4
    assert mixture["public"]["rows"] == 12
    logged = (out / "seed-43/runs/dae/dae/metrics.jsonl").read_text().splitlines()
    assert {"logits/shop", "logits/public", "attention/shop", "targets/shop"} <= json.loads(logged[-1]).keys()
    # The other losses of a run are measured although they are not minimised.
    logged = (out / "seed-43/runs/kd_prediction/kd_prediction/metrics.jsonl").read_text().splitlines()
    assert all(json.loads(logged[-1])[key] > 0.05 for key in ("logits", "attention", "grad_norm"))
    drawn = {Path(figure).stem for figure in report["figures"]}
    assert {"losses", "routes", "gradient_norms", "scores", "retention", "tasks"} <= drawn
    assert all((out / figure).stat().st_size > 1000 for figure in report["figures"])
    page = (out / "report.html").read_text()
    assert "KD, both" in page
    assert "The pocket study" in page
    saved = json.loads((out / "report.json").read_text())
    assert saved["models"] == report["models"]
    assert (out / "results" / "seed-43.json").exists()
    assert "KD, both" in lines[-1]
    assert "interpolation, 0.5" in lines[-1]
    # Again: nothing is trained twice.
    again: list[str] = []
    run_stage(out / "seed-43" / "recipe.yaml", "dae", again.append)
    assert sum("kept" in line for line in again) == 1
    # Another length in the same folder is refused, and the old report stays.
    with pytest.raises(InputError, match=r"holds a demo of other settings \(steps\); give another folder with --out"):
        main(out, False, None, again.append, LONGER)
    assert json.loads((out / "report.json").read_text()) == saved


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        main(tmp_path / "file" / "demo", False, None, lambda line: None, TOY)


def test_a_full_disk_is_no_wrong_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("preceptor.pocket.demo.write_atomic", full)
    with pytest.raises(RunFailed, match=r"the disk is full .*; make room, and run the same command again"):
        main(tmp_path / "demo", False, None, lambda line: None, TOY)


def test_methods_of_one_length_differ_in_what_they_follow_alone(tmp_path: Path) -> None:
    noisy = [name for name, method in METHODS.items() if method.part not in APART]
    recipe = load_recipe(write_study(tmp_path, 43, TOY, noisy))
    assert list(recipe.stages) == ["student", *noisy, "scores"]
    stages = study_recipe(43, TOY, noisy)["stages"]
    common: dict[str, list[dict[str, object]]] = {}
    for name in noisy:
        if METHODS[name].learning_rate is None:
            continue
        stage = {**stages[name], "training": {**stages[name]["training"]}}
        assert stage["training"].pop("learning_rate") == METHODS[name].learning_rate
        alike = {key: stage[key] for key in ("rows", "rows_per_step", "max_length", "training")}
        common.setdefault(METHODS[name].length, []).append(alike)
        assert set(stage) - {*alike, "data"} <= {"kind", "model", "student", "teacher", "objective"}
    assert all(each == group[0] for group in common.values() for each in group)
    assert stages["dae"]["data"] == stages["replay"]["data"] == stages["swapped"]["data"] == stages["mol"]["data"]


def test_the_recipe_without_noise_reads_the_models_of_the_other(tmp_path: Path) -> None:
    elsewhere = {"kd_both": tmp_path / "kd_both", "expert": tmp_path / "expert"}
    stages = study_recipe(43, TOY, ["dae_10_clean", "replay_10_clean"], elsewhere)["stages"]
    assert stages["dae_10_clean"]["teacher"]["routes"] == {
        "shop": str(tmp_path / "expert"),
        "public": str(tmp_path / "kd_both"),
    }
    assert stages["replay_10_clean"]["model"] == str(tmp_path / "kd_both")
    assert "scores" not in stages


def test_public_rows_are_noisy_and_test_rows_clean(tmp_path: Path) -> None:
    write_study(tmp_path, 43, TOY, ["kd_both"])
    public = [json.loads(line) for line in (tmp_path / "public.jsonl").read_text().splitlines()]
    test = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    shop = [json.loads(line) for line in (tmp_path / "shop.jsonl").read_text().splitlines()]
    assert public == make_rows("train", 16, 43, noise=NOISE)
    assert shop == make_shop_rows("train", 24, 43)
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
