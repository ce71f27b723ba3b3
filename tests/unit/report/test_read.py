"""What is accepted as RUN, and that a broken, partial or foreign directory still gives what is in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import toy_runs
from preceptor.errors import InputError
from preceptor.report import write_report
from preceptor.report.read import Run, read_run
from preceptor.report.sources import RunSource, places
from preceptor.report.summary import summarise


def read(path: Path) -> list[Run]:
    return [read_run(place) for place in places(path)]


@pytest.mark.parametrize(
    ("given", "ids", "stages"),
    [
        ("runs/toy", ["toy"], 3),
        ("runs/toy/kd", ["kd"], 1),
        ("runs", ["other", "toy"], 4),
        (".", ["other", "toy"], 4),
    ],
)
def test_a_run_a_stage_of_one_and_a_folder_of_runs_are_accepted(
    tmp_path: Path, given: str, ids: list[str], stages: int
) -> None:
    toy_runs.whole_run(tmp_path / "runs" / "toy")
    toy_runs.training(tmp_path / "runs" / "other", "kd")
    (tmp_path / "runs" / "other" / "recipe.yaml").write_text(toy_runs.recipe_text("other", stages=("kd",)))
    runs = read(tmp_path / given)
    assert [run.id for run in runs] == ids
    assert sum(len(run.stages) for run in runs) == stages
    assert not [problem for run in runs for problem in run.problems]


def test_old_results_models_reports_and_hidden_folders_are_no_stages(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    toy_runs.write_json(run / "kd.1" / "stage.json", toy_runs.stage_record("kd", "distill"))
    toy_runs.write_json(run / "dae.2" / "stage.json", "broken")
    toy_runs.write_json(run / ".cache" / "stage.json", {})
    toy_runs.write_json(run / "page" / "report.json", {})
    (run / "figures").mkdir()
    (found,) = read(run)
    assert [stage.name for stage in found.stages] == ["kd", "dae", "scores"]
    assert found.problems == []


def test_a_stage_whose_own_name_ends_in_a_number_is_a_stage(tmp_path: Path) -> None:
    toy_runs.training(tmp_path / "toy", "expert")
    toy_runs.training(tmp_path / "toy", "expert.2")
    assert [stage.name for stage in read(tmp_path / "toy")[0].stages] == ["expert", "expert.2"]


def test_an_old_result_that_is_named_is_read(tmp_path: Path) -> None:
    toy_runs.training(tmp_path / "toy", "kd")
    (tmp_path / "toy" / "kd").rename(tmp_path / "toy" / "kd.1")
    assert [stage.name for stage in read(tmp_path / "toy" / "kd.1")[0].stages] == ["kd"]


def _copy(run: Path, name: str, as_: str, **changes: object) -> None:
    shutil.copytree(run / name, run / as_)
    path = run / as_ / "stage.json"
    toy_runs.write_json(path, {**json.loads(path.read_text()), "identity": as_, **changes})


def test_of_two_folders_of_one_stage_that_of_its_name_is_shown(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    _copy(run, "kd", "a-kd", seconds=1.0, finished="2027-01-01T00:00:00+00:00")
    (found,) = read(run)
    assert [(stage.name, stage.directory.name) for stage in found.stages] == [(n, n) for n in ("kd", "dae", "scores")]
    assert found.problems == ["a-kd: is left out: it holds a result of the stage kd too, and that of kd is shown"]


def test_of_folders_of_other_names_the_newest_is_shown(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    for name, day in (("old", "01"), ("new", "09"), ("older", "00")):
        _copy(run, "kd", name, finished=f"2026-02-{day}T00:00:00+00:00")
    shutil.rmtree(run / "kd")
    (found,) = read(run)
    assert found.stages[0].directory.name == "new"
    assert len(found.problems) == 2


def test_one_result_in_several_directories_of_a_run_is_nothing_to_say(tmp_path: Path) -> None:
    folders = tuple(tmp_path / name for name in ("one", "two"))
    for folder in folders:
        toy_runs.whole_run(folder)
    (place,) = places(RunSource("both", folders))
    assert read_run(place).problems == []
    path = folders[1] / "kd" / "stage.json"
    toy_runs.write_json(path, {**json.loads(path.read_text()), "identity": "other"})
    assert read_run(place).problems == [
        "two/kd: is left out: it holds a result of the stage kd too, and that of kd is shown"
    ]


def test_a_torn_log_an_unfinished_stage_and_lost_scores_still_give_the_rest(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    (run / "dae" / "stage.json").unlink()
    toy_runs.write_json(run / "dae" / "started.json", toy_runs.stage_record("dae", "distill"))
    with (run / "dae" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')
    (run / "scores" / "scores.json").unlink()
    found = summarise(read(run))
    assert [(stage["name"], stage["status"], stage["seconds"]) for stage in found["runs"][0]["stages"]] == [
        ("kd", "done", 60.0),
        ("dae", "unfinished", 60.0),
        ("scores", "done", 60.0),
    ]
    assert found["curves"][1]["step"] == [1, 2, 3]
    assert found["models"]["dae"]["general"]["score"] == 0.75  # stage.json has the means too
    assert found["models"]["dae"]["tasks"] == {}
    assert len(found["runs"][0]["problems"]) == 3


@pytest.mark.parametrize("name", ["stage.json", "scores.json", "metrics.jsonl", "predictions/dae.jsonl", "recipe.yaml"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"{", b"[1]", b"7", b'{"format": 9}', b"\n\n", b"[" * 100_000]
)
def test_no_content_of_any_file_stops_the_report(tmp_path: Path, name: str, content: bytes) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    for folder in (run,) if name == "recipe.yaml" else (run / "kd", run / "scores"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (found,) = read(run)
    assert found.problems
    report = summarise([found])
    assert json.dumps(report)
    assert "dae" in {curve["stage"] for curve in report["curves"]}


def test_each_line_of_every_file_may_be_of_another_type(tmp_path: Path) -> None:
    """A stage.json whose fields are of other types than ours is drawn as far as it goes."""
    run = toy_runs.whole_run(tmp_path / "toy")
    odd = {"given": 3, "spec": [], "seed": "x", "results": None, "started": 5, "seconds": "long", "versions": "new"}
    toy_runs.write_json(run / "kd" / "stage.json", {**toy_runs.stage_record("kd", "distill"), **odd, "hardware": 1})
    rows = [{"step": "one", "loss": 1}, {"step": True}, {"step": 3, "loss": [1]}, {"step": 4, "loss": 2}]
    toy_runs.write_lines(run / "kd" / "metrics.jsonl", rows)
    odd_keys: list[dict[str, object]] = [{"dataset": [1]}, {"row": "0"}, {"id": None}, {"score": "1"}]
    rows = toy_runs.predictions(toy_runs.ROWS["dae"])
    lines = [{**row, **odd_keys[number % 4]} for number, row in enumerate(rows)]
    toy_runs.write_lines(run / "scores" / "predictions" / "dae.jsonl", lines)
    found = summarise(read(run))
    stage = found["runs"][0]["stages"][0]
    assert (stage["seconds"], stage["started"], stage["versions"], stage["hardware"]) == (None, None, {}, {})
    assert found["curves"][0]["step"] == [3, 4]
    assert {each["model"] for example in found["examples"] for each in example["answers"]} == {"kd", "expert"}


def test_predictions_of_other_rows_are_in_no_example(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    rows = [{**row, "id": "other"} for row in toy_runs.predictions(toy_runs.ROWS["dae"])]
    toy_runs.write_lines(run / "scores" / "predictions" / "dae.jsonl", rows)
    (found,) = read(run)
    assert list(found.stages[2].predictions) == ["kd", "expert"]
    assert "dae" in summarise([found])["models"]


def test_one_source_that_is_nothing_does_not_stop_the_others(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    (tmp_path / "empty").mkdir()
    found = write_report([tmp_path / "empty", run, tmp_path / "gone", run], tmp_path / "out", log=lambda line: None)
    assert [each["id"] for each in found["runs"]] == ["empty", "toy", "gone"]  # a run given twice is one
    assert [len(each["problems"]) for each in found["runs"]] == [1, 0, 1]
    assert found["models"]["dae"]["general"]["score"] == 0.75


def test_where_nothing_can_be_reported_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("x")
    with pytest.raises(InputError):
        write_report([tmp_path / "foreign"], tmp_path / "out", log=lambda line: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", [".", "toy"])
def test_a_run_named_by_a_relative_path_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    toy_runs.whole_run(tmp_path / "toy")
    monkeypatch.chdir(tmp_path if path == "toy" else tmp_path / "toy")
    (run,) = read(Path(path))
    assert (run.id, run.path) == ("toy", path)
