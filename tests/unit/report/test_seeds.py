"""Runs of one recipe with other seeds are one set of models; other runs are told apart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import toy_runs
from preceptor.report.groups import grouped
from preceptor.report.read import Run, named_apart, read_run
from preceptor.report.seeds import interval_over, over_seeds, pareto_front
from preceptor.report.sources import RunSource, places
from preceptor.report.summary import summarise


def read(*folders: Path) -> list[Run]:
    return [read_run(place) for folder in folders for place in places(folder)]


def seeds_of(tmp_path: Path, *generals: float, **more: Any) -> list[Path]:
    """Runs of seeds 1, 2, … in which dae has these general scores."""
    folders = []
    for seed, general in enumerate(generals, start=1):
        models = {**toy_runs.MODELS, "dae": toy_runs.model_entry(general, 0.5)}
        folders.append(toy_runs.whole_run(tmp_path / f"toy-{seed}", seed=seed, models=models, **more))
    return folders


def test_student_t_interval_of_two_and_three_seeds() -> None:
    # t(0.975, 1) = 12.7062, t(0.975, 2) = 4.30265; the standard deviation of 0 and 2 is √2, of 1, 2, 3 it is 1.
    two = over_seeds([0.0, 2.0])
    assert two.score == 1.0
    assert two.high - 1 == pytest.approx(12.7062 * math.sqrt(2) / math.sqrt(2), rel=1e-5)
    three = over_seeds([1.0, 2.0, 3.0])
    assert (three.low, three.high) == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), rel=1e-5)


def test_one_seed_keeps_its_own_interval_and_a_missing_seed_leaves_none() -> None:
    one = {"score": 0.5, "low": 0.1, "high": 0.6, "rows": 3}
    assert interval_over([one]) == {"score": 0.5, "low": 0.1, "high": 0.6}
    assert interval_over([one, None]) is None
    assert interval_over([]) is None


def test_the_pareto_front_leaves_out_what_another_beats() -> None:
    points = {"a": (0.5, 0.5), "b": (0.5, 0.6), "c": (0.7, 0.1), "d": (0.6, 0.1), "e": (0.5, 0.6)}
    assert pareto_front(points) == ["b", "e", "c"]


def test_seeds_are_merged_with_counts_as_sums(tmp_path: Path) -> None:
    found = summarise(read(*seeds_of(tmp_path, 0.7, 0.8)))
    assert found["title"] == "toy"
    assert list(found["models"]) == ["kd", "expert", "dae"]
    dae = found["models"]["dae"]
    assert (dae["seeds"], dae["runs"], dae["run"]) == (2, ["toy-1", "toy-2"], None)
    half = 12.7062 * (0.1 / math.sqrt(2)) / math.sqrt(2)
    assert dae["general"]["score"] == pytest.approx(0.75)
    assert dae["general"]["high"] == pytest.approx(0.75 + half, rel=1e-4)
    assert dae["tasks"]["letters"]["low"] == pytest.approx(0.75 - half, rel=1e-4)
    assert dae["flips"]["general"]["forgotten"]["count"] == 2
    assert dae["flips"]["general"]["rows"] == 8
    assert dae["flips"]["general"]["forgotten"]["rate"] == 0.25
    gain = next(each for each in found["differences"] if (each["model"], each["measure"]) == ("dae", "general"))
    assert gain["value"] == pytest.approx(0.25)
    assert gain["distinguishable"] is False  # 0.2 and 0.3 over two seeds: ± 0.64
    assert [curve["title"] for curve in found["curves"]] == ["kd", "dae", "kd", "dae"]
    assert [curve["seed"] for curve in found["curves"]] == [1, 1, 2, 2]
    assert any("over 2 seeds its general score is not distinguishable" in each for each in found["warnings"])


def test_a_figure_undefined_in_one_seed_is_undefined(tmp_path: Path) -> None:
    folders = seeds_of(tmp_path, 0.7, 0.8)
    path = folders[1] / "scores" / "scores.json"
    value = json.loads(path.read_text())
    value["models"]["dae"]["recovery"] = None
    del value["models"]["expert"]
    toy_runs.write_json(path, value)
    models = summarise(read(*folders))["models"]
    assert models["dae"]["recovery"] is None
    assert models["dae"]["retention"] is not None
    assert models["expert"]["seeds"] == 1


def test_a_difference_that_one_seed_lacks_is_none(tmp_path: Path) -> None:
    folders = seeds_of(tmp_path, 0.7, 0.8)
    path = folders[1] / "scores" / "scores.json"
    value = json.loads(path.read_text())
    value["models"]["dae"]["over_reference"]["general"] = None
    toy_runs.write_json(path, value)
    found = summarise(read(*folders))["differences"]
    assert [each["measure"] for each in found if each["model"] == "dae"] == ["domain"]
    assert found[0].keys() == {"measure", "model", "than", "value", "low", "high", "distinguishable"}


def test_the_standard_error_over_seeds(tmp_path: Path) -> None:
    """Win rates of 40, 43 and 52: mean 45, variance (25 + 4 + 49) / 2 = 39, so that it is √(39 / 3) = √13."""
    counts = dict.fromkeys(("wins", "losses", "ties", "rows", "failed", "missing"), 1)
    folders = []
    for seed, rate in enumerate((40.0, 43.0, 52.0), start=1):
        entry = {"source": "ours", **toy_runs.interval(rate, "win_rate"), "standard_error": 9.0, **counts}
        suite = {"metric": "acc", "filter": "none", "value": rate / 100, "stderr": 0.5, "rows": 2}
        blocks = {"alpaca_eval": {"judge": "j", "models": {"dae": entry}}, "tasks": {"models": {"dae": {"arc": suite}}}}
        folders.append(toy_runs.whole_run(tmp_path / f"toy-{seed}", seed=seed, **blocks))
    dae = summarise(read(*folders))["models"]["dae"]
    assert (dae["alpaca_eval"]["win_rate"], dae["alpaca_eval"]["wins"]) == (45.0, 3)
    assert dae["alpaca_eval"]["standard_error"] == pytest.approx(math.sqrt(13))
    assert dae["suites"]["arc"]["stderr"] == pytest.approx(math.sqrt(13) / 100)
    assert dae["suites"]["arc"]["rows"] == 6


def _with_model(run: Path, path: str, digest: str | None) -> None:
    """Makes the run's `dae` start from a model, with the hash of what was read there."""
    stage = run / "dae" / "stage.json"
    inputs = {} if digest is None else {"student": {"path": {"model.safetensors": digest}}, "data.shop": digest + path}
    toy_runs.write_json(stage, {**json.loads(stage.read_text()), "inputs": inputs})
    note, text = (run / "recipe.yaml").read_text().split("\n", 1)
    value = json.loads(text)
    value["stages"]["dae"] |= {"student": path, "training": {"run_name": f"dae-{value['seed']}"}}
    (run / "recipe.yaml").write_text(f"{note}\n{json.dumps(value)}\n")


@pytest.mark.parametrize(
    ("paths", "digests", "groups"),
    [
        (("d/m", "d/m"), (None, None), 1),
        (("d/m-1", "d/m-2"), (None, None), 2),  # the seeds' digits name other models as well
        (("d/m-1", "d/m-2"), ("a", "b"), 2),
        (("d/m-1", "d/m-2"), ("a", "a"), 1),  # one model, copied to a folder for each seed
        (("d/m", "d/n"), ("a", "a"), 2),
        (("{run}/kd/model", "{run}/kd/model"), ("a", "b"), 1),  # made by each run itself
        (("./toy-{seed}/kd/model", "toy-{seed}/kd/model"), ("a", "b"), 1),
    ],
)
def test_other_models_are_no_seeds_whatever_their_paths_are(
    tmp_path: Path, paths: tuple[str, str], digests: tuple[str | None, str | None], groups: int
) -> None:
    folders = seeds_of(tmp_path, 0.7, 0.8)
    for seed, (folder, path, digest) in enumerate(zip(folders, paths, digests, strict=True), start=1):
        _with_model(folder, path.format(run=folder, seed=seed), digest)
    assert len(grouped(read(*folders))) == groups


def test_warnings_of_seeds_are_said_once_and_noise_is_judged_over_seeds(tmp_path: Path) -> None:
    folders = seeds_of(tmp_path, 0.7, 0.8)
    for seed, folder in enumerate(folders, start=1):
        path = folder / "scores" / "scores.json"
        value = json.loads(path.read_text())
        value["warnings"] = [
            "shop: only 4 scored rows, fewer than 100; its intervals are wide",
            f"dae: its general score is not distinguishable from the reference's (paired difference +0.{seed})",
            f"dae: not above always giving the most frequent answer on t (0.{seed})",
        ]
        toy_runs.write_json(path, value)
    said = summarise(read(*folders))["warnings"]
    assert sum(each.startswith("shop: only 4 scored rows") for each in said) == 1
    assert "seed 2: dae: not above always giving the most frequent answer on t (0.2)" in said
    assert not [each for each in said if "paired difference +0.1)" in each]


@pytest.mark.parametrize(
    ("what", "groups"),
    [("nothing", 1), ("the seed", 2), ("a setting", 2), ("the data", 2), ("the recipe's texts but for the seed", 1)],
)
def test_runs_are_seeds_of_one_another_only_where_nothing_else_differs(tmp_path: Path, what: str, groups: int) -> None:
    first, second = seeds_of(tmp_path, 0.7, 0.8)
    if what == "the seed":
        for stage in ("kd", "dae", "scores"):
            path = second / stage / "stage.json"
            toy_runs.write_json(path, {**json.loads(path.read_text()), "seed": 1})
    if what == "a setting":
        path = second / "kd" / "stage.json"
        toy_runs.write_json(path, {**json.loads(path.read_text()), "spec": {"kind": "distill", "rows": 9}})
    if what == "the data":
        text = (second / "recipe.yaml").read_text()
        (second / "recipe.yaml").write_text(text.replace("shop.jsonl", "toys.jsonl"))
    if what == "the recipe's texts but for the seed":
        for seed, folder in ((1, first), (2, second)):
            text = (folder / "recipe.yaml").read_text()
            (folder / "recipe.yaml").write_text(text.replace("shop.jsonl", f"study-1/data-{seed}/shop.jsonl"))
    assert len(grouped(read(first, second))) == groups


def test_models_of_several_runs_carry_the_name_of_their_run(tmp_path: Path) -> None:
    first = toy_runs.whole_run(tmp_path / "a" / "toy")
    second = toy_runs.whole_run(tmp_path / "b" / "toy")
    trained = tmp_path / "only"
    toy_runs.training(trained, "kd", seed=9)
    found = summarise(named_apart(read(first, second, trained)))
    assert [run["id"] for run in found["runs"]] == ["a/toy", "b/toy", "only"]
    assert list(found["models"])[:3] == ["a/toy/kd", "a/toy/expert", "a/toy/dae"]
    assert len(found["models"]) == 6
    assert found["curves"][0]["title"] == "a/toy: kd"
    assert {each["run"] for each in found["examples"]} == {"a/toy", "b/toy"}
    assert {each["than"] for each in found["differences"]} == {"a/toy/kd", "b/toy/kd"}


@pytest.mark.parametrize(
    ("ids", "title"),
    [
        (("shop-1", "shop-2"), "shop"),
        (("seed-1-clean/sft", "seed-2-clean/sft"), "clean/sft"),
        (("seed 1", "seed 2"), "2 seeds"),
        (("left", "right"), "2 seeds"),
        (("shop-11", "shop-12"), "2 seeds"),
    ],
)
def test_what_several_seeds_are_called(tmp_path: Path, ids: tuple[str, str], title: str) -> None:
    runs = read(*seeds_of(tmp_path, 0.7, 0.8))
    for run, name in zip(runs, ids, strict=True):
        run.id = name
    assert [group.title for group in grouped(runs)] == [title]


def test_runs_of_one_name_get_as_many_folders_as_tell_them_apart(tmp_path: Path) -> None:
    folders = [tmp_path / top / "runs" / "toy" for top in ("x", "y")]
    for folder in folders:
        toy_runs.training(folder, "kd")
    assert [run.id for run in named_apart(read(*folders))] == ["x/runs/toy", "y/runs/toy"]
    # One named as a run and once more as a stage of it: no folder tells them apart.
    runs = read(folders[0], folders[0])
    assert [run.id for run in named_apart(runs)] == ["runs/toy (1)", "runs/toy (2)"]


def test_one_run_with_scores_beside_others_without_keeps_plain_names(tmp_path: Path) -> None:
    trained = tmp_path / "only"
    toy_runs.training(trained, "kd", seed=9)
    assert list(summarise(read(toy_runs.whole_run(tmp_path / "toy"), trained))["models"]) == ["kd", "expert", "dae"]


def test_other_rows_of_a_dataset_are_said(tmp_path: Path) -> None:
    first = toy_runs.whole_run(tmp_path / "one")
    second = toy_runs.whole_run(tmp_path / "two")
    for path in (second / "scores" / "predictions").iterdir():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        toy_runs.write_lines(path, [{**row, "id": f"other {row['id']}"} for row in rows if row["row"] < 3])
    said = [each for each in summarise(read(first, second))["warnings"] if "other rows" in each]
    assert said == [
        f"{dataset}: two was scored on other rows of it than one (3 and 4), so that their scores differ by the choice "
        "of rows too"
        for dataset in ("public", "shop")
    ]


def test_a_source_of_several_directories_is_one_run_with_titles_and_measured_figures(tmp_path: Path) -> None:
    toy_runs.training(tmp_path / "kd", "kd", seed=5)
    toy_runs.training(tmp_path / "dae", "dae", seed=5)
    toy_runs.evaluation(tmp_path / "scores", toy_runs.MODELS, seed=5)
    path = tmp_path / "scores" / "scores" / "stage.json"
    record = json.loads(path.read_text())
    record["given"]["models"]["dae"]["path"] = str(tmp_path / "dae" / "dae" / "model")
    record["given"]["models"]["expert"]["path"] = "another/model"
    toy_runs.write_json(path, record)
    source = RunSource(
        "seed 6",
        tuple(tmp_path / name for name in ("kd", "dae", "scores")),
        6,
        titles={"dae": "DAE"},
        measured={"dae": {"kl_teacher": 0.125}},
        recipe=tmp_path / "study.yaml",
    )
    (tmp_path / "study.yaml").write_text(toy_runs.recipe_text())
    (place,) = places(source)
    found = summarise([read_run(place)])
    assert [(run["id"], run["seed"], len(run["stages"])) for run in found["runs"]] == [("seed 6", 6, 3)]
    assert found["runs"][0]["recipe"] == toy_runs.recipe_text()
    dae = found["models"]["dae"]
    assert (dae["title"], dae["kl_teacher"], dae["seconds"]) == ("DAE", 0.125, 60.0)
    assert found["models"]["expert"]["seconds"] is None  # nothing of this run made it
    assert {curve["title"] for curve in found["curves"]} == {"kd", "DAE"}
    assert "kl_teacher" not in found["models"]["kd"]


def test_runs_side_by_side_that_did_each_a_stage_are_one_run(tmp_path: Path) -> None:
    """As `preceptor demo` leaves a seed."""
    runs = tmp_path / "seed-1" / "runs"
    for name in ("kd", "dae"):
        toy_runs.training(runs / name, name)
        toy_runs.training(runs / name, "student")  # the same in each of them
        (runs / name / "recipe.yaml").write_text(toy_runs.recipe_text(name, stages=("student", "kd", "dae", "scores")))
    toy_runs.evaluation(runs / "scores", toy_runs.MODELS, rows=toy_runs.ROWS)
    (runs / "scores" / "recipe.yaml").write_text(
        toy_runs.recipe_text("scores", stages=("student", "kd", "dae", "scores"))
    )
    (run,) = read(tmp_path)
    assert (run.id, run.path, run.problems) == ("seed-1", str(runs), [])
    assert '"name": "dae"' in (run.recipe or "")
    study = toy_runs.recipe_text("study", stages=("student", "kd", "dae", "scores"))
    (tmp_path / "seed-1" / "recipe.yaml").write_text(study)
    (run,) = read(tmp_path)
    assert run.recipe == study
    (tmp_path / "seed-1" / "recipe.yaml").write_text(study.replace('"seed": 1', '"seed": 2'))
    assert '"name": "dae"' in (read(tmp_path)[0].recipe or "")
    assert [stage.name for stage in run.stages] == ["student", "kd", "dae", "scores"]
    # Had two of them other results of one stage, they would be two trials.
    path = runs / "dae" / "student" / "stage.json"
    toy_runs.write_json(path, {**json.loads(path.read_text()), "identity": "another"})
    assert [run.id for run in read(tmp_path)] == ["dae", "kd", "scores"]
