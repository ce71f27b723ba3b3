"""What a user is told of runs that are broken, partial or none: one sentence each, and the rest is still drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import toy_runs
from preceptor.errors import InputError
from preceptor.report import write_report
from preceptor.report.read import read_run
from preceptor.report.sources import places


def _unfinished(run: Path) -> None:
    (run / "dae" / "stage.json").rename(run / "dae" / "started.json")


def _failed(run: Path) -> None:
    _unfinished(run)
    (run / "dae" / "error.txt").write_text("Traceback (most recent call last):\n  …\nMemoryError: no room\n")


def _foreign_stage(run: Path) -> None:
    (run / "dae" / "stage.json").unlink()


def _append(path: str, text: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        with (run / path).open("a", encoding="utf-8") as stream:
            stream.write(text)

    return change


def _write(path: str, text: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / path).parent.mkdir(exist_ok=True)
        (run / path).write_text(text, encoding="utf-8")

    return change


def _remove(path: str) -> Callable[[Path], None]:
    return lambda run: (run / path).unlink()


def _newer(path: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        value = json.loads((run / path).read_text())
        (run / path).write_text(json.dumps({**value, "format": 2}))

    return change


def _first_lines(*lines: str) -> Callable[[Path], None]:
    """The comments at the top of recipe.yaml, of a run that was stopped."""

    def change(run: Path) -> None:
        _unfinished(run)
        text = (run / "recipe.yaml").read_text().split("\n", 1)[1]
        (run / "recipe.yaml").write_text("\n".join([*lines, text]))

    return change


def _field(key: str, value: object) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        record = json.loads((run / "kd" / "stage.json").read_text())
        (run / "kd" / "stage.json").write_text(json.dumps({**record, key: value}))

    return change


_EVALUATED = "# From preceptor evaluate, overrides applied; relative paths start in /here."


def _renamed(run: Path) -> None:
    (run / "dae").rename(run / "dae-old")
    toy_runs.training(run, "dae")


def _other_rows(run: Path) -> None:
    rows = [{**row, "id": "other"} for row in toy_runs.predictions(toy_runs.ROWS["dae"])]
    toy_runs.write_lines(run / "scores" / "predictions" / "dae.jsonl", rows)


def _older_rows(run: Path) -> None:
    rows = [{"dataset": "shop", "answer": "x"}, *toy_runs.predictions(toy_runs.ROWS["dae"])]
    toy_runs.write_lines(run / "scores" / "predictions" / "dae.jsonl", rows)


def _no_predictions(run: Path) -> None:
    (run / "scores" / "predictions").rename(run / "scores" / "checkpoints")


def _damaged_model(run: Path) -> None:
    path = run / "scores" / "scores.json"
    value = json.loads(path.read_text())
    value["models"]["dae"]["general"]["score"] = "high"
    path.write_text(json.dumps(value))


def _not_begun(run: Path) -> None:
    (run / "recipe.yaml").write_text(toy_runs.recipe_text("toy", stages=("kd", "dae", "scores", "more", "most")))


# what is wrong with the run -> what is said
PROBLEMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "stopped": (
        _unfinished,
        "dae: has started.json and no stage.json: it was stopped, or is still running; "
        "`preceptor run study/recipe.yaml` goes on with it",
    ),
    "failed": (
        _failed,
        "dae: has started.json and no stage.json: it failed (MemoryError: no room); "
        "`preceptor run study/recipe.yaml` goes on with it",
    ),
    "stopped, with its command": (
        _first_lines(_EVALUATED, "# Run it again with: preceptor evaluate kd --on shop"),
        "dae: has started.json and no stage.json: it was stopped, or is still running; "
        "`preceptor evaluate kd --on shop` goes on with it",
    ),
    "stopped, of a recipe that is no file": (
        _first_lines(_EVALUATED),
        "dae: has started.json and no stage.json: it was stopped, or is still running; "
        "the command that began it goes on with it",
    ),
    "stopped, of a recipe that does not say where it is from": (
        _first_lines("# mine"),
        "dae: has started.json and no stage.json: it was stopped, or is still running; "
        "`preceptor run recipe.yaml` goes on with it",
    ),
    "two results of one stage": (
        _renamed,
        "dae-old: is left out: it holds a result of the stage dae too, and that of dae is shown",
    ),
    "a duration that is none": (
        _field("seconds", -1),
        "kd: stage.json: seconds is -1 where a duration belongs; it is left out",
    ),
    "a seed that is none": (
        _field("seed", 1.5),
        "kd: stage.json: seed is 1.5 where a whole number belongs; it is left out",
    ),
    "a mixture that is none": (
        _field("results", {"data": {"shop": {"share": "all"}}}),
        "kd: stage.json: results.data.shop.share is 'all' where a number belongs; it is left out",
    ),
    "of no run": (
        _foreign_stage,
        "dae: has no stage.json and no started.json, so that what made it is unknown; what can be read of it is shown",
    ),
    "a folder that is no stage": (
        _write("notes/x.txt", "x"),
        "notes: has no stage.json and no started.json, so it is no stage; left out",
    ),
    "not begun": (_not_begun, "more, most: not begun; `preceptor run study/recipe.yaml` goes on with the run"),
    "no recipe": (
        _remove("recipe.yaml"),
        "recipe.yaml: is missing, so that what the run was given is known from its stages alone",
    ),
    "a recipe that is none": (_write("recipe.yaml", "- 1\n"), "recipe.yaml: is no recipe; it is shown as it is"),
    "a newer stage": (
        _newer("kd/stage.json"),
        "kd: stage.json: is of format 2, and this preceptor reads format 1; make the report with the version that "
        "wrote it",
    ),
    "a record of another program": (
        _write("kd/stage.json", '{"stage": 1}'),
        "kd: stage.json: is not the record of a stage of preceptor; it is left out",
    ),
    "a record cut short": (
        _write("kd/stage.json", '{"format": 1,'),
        "kd: stage.json: is not JSON; was it cut short or edited?",
    ),
    "a record that is a list": (
        _write("kd/stage.json", "[1, 2]"),
        "kd: stage.json: holds [1, 2] where a JSON object belongs",
    ),
    "no log": (_remove("kd/metrics.jsonl"), "kd: metrics.jsonl is missing, so that there are no curves of it"),
    "an empty log": (_write("kd/metrics.jsonl", ""), "kd: metrics.jsonl: is empty; no step was logged"),
    "a torn log": (
        _append("kd/metrics.jsonl", '{"step": 4, "lo'),
        "kd: metrics.jsonl: its last line is cut short, as by a kill; the 3 before it are used",
    ),
    "a broken log": (
        _append("kd/metrics.jsonl", "oh\nno\n"),
        "kd: metrics.jsonl: 2 lines (the first is 4) cannot be read as JSON objects; the other 3 are used",
    ),
    "a log without steps": (
        _append("kd/metrics.jsonl", '{"loss": 1}\n'),
        "kd: metrics.jsonl: 1 of 4 lines name no step; they are in no curve",
    ),
    "no scores": (
        _remove("scores/scores.json"),
        "scores: scores.json is missing; its means are those of stage.json, without tasks and examples",
    ),
    "newer scores": (
        _newer("scores/scores.json"),
        "scores: scores.json: is of format 2, and this preceptor reads format 1; make the report with the version that "
        "wrote it",
    ),
    "scores of another program": (
        _write("scores/scores.json", '{"accuracy": 1.0}'),
        "scores: scores.json: is not a scores file of preceptor (format None); its scores are left out",
    ),
    "a damaged model": (
        _damaged_model,
        "scores: scores.json: models.dae.general.score is 'high' where a number belongs; the model is left out",
    ),
    "no predictions": (_no_predictions, "scores: predictions/ is missing, so that no examples are shown"),
    "no predictions of a model": (
        _remove("scores/predictions/dae.jsonl"),
        "scores: predictions/dae.jsonl is missing, so that dae is in no example",
    ),
    "predictions of other rows": (
        _other_rows,
        "scores: predictions/dae.jsonl: is of other rows than kd.jsonl, so that dae is in no example",
    ),
    "predictions of another version": (
        _older_rows,
        "scores: predictions/dae.jsonl: 1 of 9 rows are not as docs/scores.md describes them; they are left out",
    ),
}


@pytest.mark.parametrize("what", PROBLEMS)
def test_what_is_said_of_a_run(tmp_path: Path, what: str) -> None:
    change, sentence = PROBLEMS[what]
    run = toy_runs.whole_run(tmp_path / "toy")
    change(run)
    (place,) = places(run)
    found = read_run(place)
    assert found.problems == [sentence]
    assert any(stage.reportable for stage in found.stages)


# what is given as RUN -> what is said where it is all that was given
REFUSALS: dict[str, str] = {
    "gone": "report: there is nothing to report: {0}/gone: does not exist; give a run directory, such as runs/NAME",
    "empty": "report: there is nothing to report: {0}/empty: holds no run: no folder in it has a stage.json; give a "
    "run directory, such as runs/NAME",
    "recipe.yaml": "report: there is nothing to report: {0}/recipe.yaml: is a file; give the run directory, such as "
    "runs/NAME, that `preceptor run` made of it",
    "begun": "report: there is nothing to report: {0}/begun: has a recipe.yaml and no stage begun; run `preceptor run` "
    "with that recipe first",
    "broken": "report: there is nothing to report: kd: stage.json: is not JSON; was it cut short or edited?; "
    "recipe.yaml: is missing, so that what the run was given is known from its stages alone",
}


@pytest.mark.parametrize("given", REFUSALS)
def test_what_is_refused(tmp_path: Path, given: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    for folder in (tmp_path, tmp_path / "begun"):
        (folder / "recipe.yaml").write_text(toy_runs.recipe_text())
    (tmp_path / "broken" / "kd").mkdir(parents=True)
    (tmp_path / "broken" / "kd" / "stage.json").write_text("{")
    with pytest.raises(InputError) as refused:
        write_report([tmp_path / given], tmp_path / "out", log=lambda line: None)
    assert str(refused.value) == REFUSALS[given].format(tmp_path)
    assert not (tmp_path / "out").exists()


def test_many_problems_are_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(and 2 more problems\)$"):
        write_report([tmp_path / name for name in "abcde"], tmp_path / "out", log=lambda line: None)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^report: no run is given; give one or more run directories, such as runs/NAME$"
    ):
        write_report([], tmp_path / "out", log=lambda line: None)


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError) as refused:
        write_report([run], tmp_path / "out", log=lambda line: None)
    assert str(refused.value) == (
        f"report: {tmp_path}/out cannot be written (File exists); give a folder that can with --out"
    )


@pytest.mark.parametrize("name", ["report.json", "report.html"])
@pytest.mark.parametrize("content", ["[1]", "", '{"duration": 2}'])
def test_files_of_other_programs_are_not_written_over(tmp_path: Path, name: str, content: str) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises(InputError) as refused:
        write_report([run], tmp_path / "out", log=lambda line: None)
    assert str(refused.value) == (
        f"report: {tmp_path}/out holds a {name} that preceptor did not write; move it away, or give another folder "
        "with --out"
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert (tmp_path / "out" / name).read_text() == content


def test_a_stage_that_is_named_is_said_once(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    (run / "dae" / "metrics.jsonl").unlink()
    said: list[str] = []
    write_report([run / "dae"], tmp_path / "out", log=said.append)
    assert said == ["dae: metrics.jsonl is missing, so that there are no curves of it"]


def test_problems_are_logged_with_their_run(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    _foreign_stage(run)
    said: list[str] = []
    write_report([run], tmp_path / "out", log=said.append)
    assert said[0].startswith("toy: dae: has no stage.json and no started.json")
