"""One run's models from its evaluate stages: suites beside rows, several stages, judged files, what is noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import toy_runs
from preceptor.report.read import read_run
from preceptor.report.scores_file import Scores, read_scores
from preceptor.report.sources import places
from preceptor.report.summary import flattened, summarise
from preceptor.report.views.models import suites_table
from toy_runs import interval


def summary(*folders: Path) -> dict[str, Any]:
    return summarise([read_run(place) for folder in folders for place in places(folder)])


def mt_bench(judge: str = "judge-a", **scores: float | None) -> dict[str, Any]:
    """An mt_bench block of two categories, in which the first model is the one compared with."""
    names = list(scores)
    models = {
        name: {
            "source": "judgments file" if name.startswith("other") else "ours",
            "score": None if score is None else interval(score),
            "turns": {"1": None if score is None else interval(score), "2": None},
            "categories": {} if score is None else {"math": {**interval(score), "rows": 4}},
            "rows": 4,
            "failed": 1,
            "missing": 0,
        }
        for name, score in scores.items()
    }
    first = scores[names[0]] or 0
    differences = [
        {"model": name, "than": names[0], **interval((scores[name] or 0) - first, "value"), "rows": 4}
        for name in names[1:]
    ]
    return {
        "judge": judge,
        "questions": 2,
        "categories": ["math", "writing"],
        "models": models,
        "differences": differences,
        "usage": {"requests": 8},
        "warnings": ["dae: no grade could be read from 1 of 5 judgments; they are left out of the means"],
    }


def alpaca_eval(**rates: float) -> dict[str, Any]:
    counts = {"wins": 6, "losses": 3, "ties": 1, "rows": 10, "failed": 0, "missing": 0}
    models = {
        name: {
            "source": "ours",
            **interval(rate, "win_rate", 5.0),
            "standard_error": 2.5,
            **counts,
            "mean_length": 100.0,
            "baseline_mean_length": 50.0,
        }
        for name, rate in rates.items()
    }
    block = {"judge": "judge-a", "baseline": "davinci", "instructions": 10, "preference": "ranking", "order": "random"}
    return {**block, "models": models, "differences": [], "usage": None, "warnings": []}


def task_suites(**values: float) -> dict[str, Any]:
    result = {"metric": "acc", "filter": "none", "stderr": 0.02, "rows": 50, "higher_is_better": True}
    models = {name: {"arc": {**result, "value": value}} for name, value in values.items()}
    return {"harness": "lm-eval 0.4.13", "models": models, "warnings": []}


def test_suites_stand_beside_rows_and_judged_files_are_other_models(tmp_path: Path) -> None:
    blocks = {
        "mt_bench": mt_bench(kd=6.0, dae=7.0, other=5.0, silent=None),
        "alpaca_eval": alpaca_eval(dae=60.0),
        "tasks": task_suites(kd=0.5),
    }
    found = summary(toy_runs.whole_run(tmp_path / "toy", **blocks))
    models = found["models"]
    assert list(models) == ["kd", "expert", "dae", "other", "silent"]
    assert models["dae"]["mt_bench"]["score"] == interval(7.0)
    assert models["dae"]["mt_bench"]["turns"] == {"1": interval(7.0), "2": None}
    assert models["dae"]["mt_bench"]["categories"] == {"math": {**interval(7.0), "rows": 4}}
    assert (models["dae"]["mt_bench"]["judge"], models["dae"]["mt_bench"]["failed"]) == ("judge-a", 1)
    assert models["dae"]["alpaca_eval"]["win_rate"] == 60.0
    assert models["kd"]["suites"]["arc"]["value"] == 0.5
    assert (models["other"]["kind"], models["other"]["source"], models["other"]["general"]) == (
        "other", "judgments file", None
    )  # fmt: skip
    assert models["silent"]["mt_bench"]["score"] is None
    assert found["mt_bench"] == {
        "judge": "judge-a",
        "questions": 2,
        "categories": ["math", "writing"],
        "usage": {"requests": 8},
        "judges": ["judge-a"],
    }
    assert found["alpaca_eval"]["baseline"] == "davinci"
    assert found["tasks"] == {"harness": "lm-eval 0.4.13"}
    gain = {each["model"]: each for each in found["differences"] if each["measure"] == "mt_bench"}
    assert not [each for each in found["differences"] if each["model"] == each["than"]]
    assert (gain["dae"]["value"], gain["dae"]["than"], gain["dae"]["distinguishable"]) == (1.0, "kd", True)
    assert (
        "MT-Bench: dae: no grade could be read from 1 of 5 judgments; they are left out of the means"
        in (found["warnings"])
    )


def test_a_difference_that_may_be_nothing_is_not_distinguishable(tmp_path: Path) -> None:
    over = {"general": {"value": 0.1, "low": 0.0, "high": 0.2}, "domain": {"value": 0.1, "low": 0.01, "high": 0.2}}
    models = {"kd": toy_runs.model_entry(0.5, 0.25), "dae": toy_runs.model_entry(0.5, 0.25, over_reference=over)}
    found = summary(toy_runs.whole_run(tmp_path / "toy", models=models))["differences"]
    assert {each["measure"]: each["distinguishable"] for each in found} == {"general": False, "domain": True}


def test_a_warning_of_a_suite_that_the_whole_file_has_too_is_said_once(tmp_path: Path) -> None:
    block = mt_bench(kd=6.0)
    said = summary(toy_runs.whole_run(tmp_path / "toy", mt_bench=block, warnings=block["warnings"]))["warnings"]
    assert [each for each in said if "no grade" in each] == block["warnings"]


def test_a_stage_without_rows_has_suites_alone(tmp_path: Path) -> None:
    nothing = dict.fromkeys(toy_runs.model_entry(0, 0))  # every field null
    run = tmp_path / "toy"
    record = toy_runs.stage_record("bench", "evaluate", given={"kind": "evaluate", "models": {}})
    toy_runs.write_json(run / "bench" / "stage.json", record)
    value = toy_runs.scores_file({"kd": nothing}, mt_bench=mt_bench(kd=6.0), reference=None, datasets={})
    toy_runs.write_json(run / "bench" / "scores.json", value)
    found = summary(run)
    assert found["models"]["kd"]["mt_bench"]["score"]["score"] == 6.0
    assert found["models"]["kd"]["tasks"] == {}
    assert found["datasets"] == {}
    assert found["runs"][0]["problems"] == [
        "recipe.yaml: is missing, so that what the run was given is known from its stages alone"
    ]


def test_two_stages_that_measure_other_things_of_a_model_are_one_entry(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    nothing = {"general": None, "domain": None, "datasets": {}}
    block = {"datasets": {}, "reference": None, "expert": None, "alpaca_eval": alpaca_eval(dae=60.0)}
    toy_runs.evaluation(run, {"dae": {**toy_runs.model_entry(0, 0), **nothing}}, name="judged", **block)
    value = toy_runs.scores_file({"dae": nothing}, **block)
    toy_runs.write_json(run / "judged" / "scores.json", value)
    runs = [read_run(place) for place in places(run)]
    models = summarise(runs)["models"]
    assert summarise(runs)["models"] == models  # what was read is not changed by it
    assert list(models) == ["kd", "expert", "dae"]
    assert (models["dae"]["general"]["score"], models["dae"]["alpaca_eval"]["win_rate"]) == (0.75, 60.0)
    assert models["dae"]["flips"]["general"]["gained"]["count"] == 2


def test_a_model_judged_twice_is_two_entries(tmp_path: Path) -> None:
    run = toy_runs.whole_run(
        tmp_path / "toy", models={"kd": toy_runs.model_entry(0.5, 0.25)}, mt_bench=mt_bench(kd=6.0)
    )
    stage = toy_runs.evaluation(run, {"kd": toy_runs.model_entry(0.5, 0.25)}, name="zweite")
    nothing = {"kd": {"general": None, "domain": None}}
    toy_runs.write_json(stage / "scores.json", toy_runs.scores_file(nothing, mt_bench=mt_bench("judge-b", kd=3.0)))
    models = summary(run)["models"]
    assert [(name, model["mt_bench"]["score"]["score"]) for name, model in models.items()] == [
        ("kd", 6.0), ("zweite/kd", 3.0)
    ]  # fmt: skip


@pytest.mark.parametrize("same", [True, False])
def test_a_second_measurement_of_the_same_thing_has_a_name_of_its_own(tmp_path: Path, same: bool) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    again = {name: toy_runs.model_entry(0.125, 0.125) for name in ("kd", "dae")}
    stage = toy_runs.evaluation(run, again, name="zweite")
    if not same:  # nor is another model of that name the same model, even where it was measured otherwise
        value = toy_runs.scores_file({"dae": {"general": None, "domain": None}}, alpaca_eval=alpaca_eval(dae=60.0))
        toy_runs.write_json(stage / "scores.json", {**value, "reference": None})
        record = toy_runs.stage_record(
            "zweite", "evaluate", given={"kind": "evaluate", "models": {"dae": {"path": "elsewhere"}}}
        )
        toy_runs.write_json(stage / "stage.json", record)
    found = summary(run)
    names = ["zweite/kd", "zweite/dae"] if same else ["zweite/dae"]
    assert list(found["models"]) == ["kd", "expert", "dae", *names]
    assert found["models"]["dae"]["general"]["score"] == 0.75
    if same:
        assert found["models"]["zweite/dae"]["general"]["score"] == 0.125
        assert {(each["model"], each["than"]) for each in found["differences"]} >= {("zweite/dae", "zweite/kd")}


def test_a_task_of_two_datasets_is_named_with_its_dataset(tmp_path: Path) -> None:
    entry = toy_runs.model_entry(0.5, 0.25)
    entry["datasets"]["shop"]["tasks"]["letters"] = interval(0.25)
    run = toy_runs.whole_run(tmp_path / "toy", models={"kd": entry})
    assert set(summary(run)["models"]["kd"]["tasks"]) == {"public/letters", "shop/letters", "shelf"}


def test_models_near_the_best_are_not_distinguishable_unless_a_paired_difference_says_more(tmp_path: Path) -> None:
    models = {"kd": toy_runs.model_entry(0.5, 0.25), "expert": toy_runs.model_entry(0.25, 1.0)}
    models |= {name: toy_runs.model_entry(general, 0.5) for name, general in (("a", 0.9), ("b", 0.8), ("c", 0.75))}
    models["d"] = toy_runs.model_entry(0.69, 0.5)
    said = summary(toy_runs.whole_run(tmp_path / "toy", models=models))["warnings"]
    assert [each for each in said if "overlap" in each] == [
        "general score: b and c are not distinguishable from the best, a: their intervals overlap"
    ]
    # The reference would be near, but the pair is compared row by row.
    models["kd"] = toy_runs.model_entry(0.85, 0.25)
    assert not [
        each for each in summary(toy_runs.whole_run(tmp_path / "two", models=models))["warnings"] if "kd" in each
    ]


def test_published_rows_are_not_the_best(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy", alpaca_eval=alpaca_eval(kd=60.0, dae=64.0))
    said = summarise([read_run(place) for place in places(run)], published=True)["warnings"]
    assert [each for each in said if "overlap" in each] == [
        "AlpacaEval win rate: kd is not distinguishable from the best, dae: their intervals overlap"
    ]


def test_other_judges_are_said(tmp_path: Path) -> None:
    first = toy_runs.whole_run(tmp_path / "one", mt_bench=mt_bench(kd=6.0))
    second = toy_runs.whole_run(tmp_path / "two", mt_bench=mt_bench("judge-b", kd=6.0))
    found = summary(first, second)
    assert found["mt_bench"]["judges"] == ["judge-a", "judge-b"]
    assert "MT-Bench: judged by judge-a and by judge-b, whose scores are not on one scale" in found["warnings"]


@pytest.mark.parametrize(("given", "shown"), [(True, ""), (False, "lower is better"), (None, "")])
def test_the_direction_of_a_task_is_shown_only_where_it_is_known(
    tmp_path: Path, given: bool | None, shown: str
) -> None:
    suites = task_suites(kd=0.5)
    suites["models"]["kd"]["arc"]["higher_is_better"] = given
    found = summary(toy_runs.whole_run(tmp_path / "toy", tasks=suites))
    assert found["models"]["kd"]["suites"]["arc"]["higher_is_better"] is given
    table = suites_table(found)
    assert table is not None
    assert table.rows[0][1].note == shown


def test_settings_are_flattened() -> None:
    nested = {"rows": 8, "lora": None, "objective": [{"kind": "logits"}, {"weight": 0.5}], "data": {}, "packing": False}
    assert flattened(nested) == {
        "rows": 8, "objective.0.kind": "logits", "objective.1.weight": 0.5, "packing": False
    }  # fmt: skip


def test_a_damaged_part_of_scores_is_left_out_and_the_rest_is_read(tmp_path: Path) -> None:
    models = {name: toy_runs.model_entry(0.5, 0.25) for name in ("kd", "bad", "worse")}
    models["bad"]["general"]["low"] = "wide"
    models["worse"] = 7  # type: ignore[assignment]
    value = toy_runs.scores_file(models, mt_bench=mt_bench(kd=6.0, worse=5.0), alpaca_eval=[1])
    value["mt_bench"]["models"]["worse"] = {"score": {"score": True}}
    value["datasets"]["shop"] = None
    said: list[str] = []
    scores = read_scores(toy_runs.write_json(tmp_path / "scores.json", value), said.append)
    assert isinstance(scores, Scores)
    assert list(scores.models) == ["kd"]
    assert scores.models["kd"]["mt_bench"]["score"]["score"] == 6.0
    assert list(scores.datasets) == ["public"]
    assert len(said) == 6  # the expert is the damaged one


def test_reading_scores_does_not_need_what_it_does_not_show(tmp_path: Path) -> None:
    nothing = {"score": None, "low": None, "high": None}
    value = {"format": 1, "models": {"kd": {"general": interval(0.5), "domain": nothing}}}
    said: list[str] = []
    scores = read_scores(toy_runs.write_json(tmp_path / "scores.json", value), said.append)
    assert scores is not None
    assert said == []
    assert scores.models["kd"]["general"] == interval(0.5)
    assert scores.models["kd"]["domain"] is None
