"""Files that are JSON and of our format, and in which any one value is of another type: the page is still made."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import preceptor.report.figures
import toy_runs
from preceptor.errors import InputError, RunFailed
from preceptor.report import write_report

WRONG: tuple[Any, ...] = (None, "x", [1], {}, 10**400, -1, "\ud800", True)
Place = tuple[str | int, ...]


def rich_run(folder: Path) -> Path:
    """A run in which every part of each file is there."""
    models = {"kd": toy_runs.MODELS["kd"], "dae": toy_runs.MODELS["dae"]}
    mean = {**toy_runs.interval(6.0), "rows": 4}
    judged = {
        "source": "ours", "score": mean, "turns": {"1": mean, "2": None}, "categories": {"math": mean},
        "rows": 4, "failed": 1, "missing": 0,
    }  # fmt: skip
    preferred = {
        "source": "ours", **toy_runs.interval(40.0, "win_rate"), "standard_error": 2.0, "wins": 4, "losses": 6,
        "ties": 0, "rows": 10, "failed": 0, "missing": 0, "mean_length": 10.0, "baseline_mean_length": 12.0,
    }  # fmt: skip
    usage = {"requests": 8, "cached": 2, "completion_tokens": 5, "prompt_tokens": 7, "cost": 0.5, "cost_in_all": 1.0}
    than_kd = {"model": "dae", "than": "kd", **toy_runs.interval(0.5, "value")}
    task = {"metric": "acc", "filter": "none", "value": 0.5, "stderr": 0.1, "rows": 9, "higher_is_better": True}
    return toy_runs.whole_run(
        folder,
        models=models,
        warnings=["a warning"],
        mt_bench={
            "judge": "j", "questions": 2, "categories": ["math"], "models": dict.fromkeys(models, judged),
            "differences": [than_kd], "usage": usage, "warnings": [],
        },
        alpaca_eval={
            "judge": "j", "baseline": "b", "instructions": 10, "preference": "ranking", "order": "both",
            "models": dict.fromkeys(models, preferred), "differences": [than_kd], "usage": usage, "warnings": [],
        },
        tasks={"harness": "lm-eval", "models": {name: {"arc": task} for name in models}, "warnings": []},
    )  # fmt: skip


def positions(value: Any, at: Place = ()) -> Iterator[Place]:
    """Every leaf and every container below `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from positions(item, (*at, key))


def replaced(value: Any, at: Place, wrong: Any) -> Any:
    changed = copy.deepcopy(value)
    part = changed
    for key in at[:-1]:
        part = part[key]
    part[at[-1]] = wrong
    return changed


FILES = ("scores/scores.json", "scores/stage.json", "kd/stage.json", "kd/metrics.jsonl", "scores/predictions/dae.jsonl")


@pytest.mark.parametrize("file", FILES)
def test_any_value_of_another_type_leaves_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """Each value in turn, as two of the wrong ones: all eight take four times as long and find no more."""
    monkeypatch.setattr(preceptor.report.figures, "draw", lambda report, failed: {})
    monkeypatch.setattr(preceptor.report, "write_atomic", lambda path, text: path.write_text(text, encoding="utf-8"))
    draws = random.Random(file)
    path = rich_run(tmp_path / "toy") / file
    texts = path.read_text().splitlines() if file.endswith("l") else [path.read_text()]
    whole = json.loads(texts[0])
    for at, wrong in ((at, wrong) for at in positions(whole) for wrong in draws.sample(WRONG, 2)):
        text = json.dumps(replaced(whole, at, wrong))
        path.write_text("\n".join([text, *texts[1:]]) + "\n")
        said: list[str] = []
        try:
            report = write_report([tmp_path / "toy"], tmp_path / "out", log=said.append)
        except Exception as error:
            raise AssertionError(f"{file}: {at} as {str(wrong)[:9]!a}") from error
        assert (tmp_path / "out" / "report.html").stat().st_size > 1000
        (tmp_path / "out" / "report.html").unlink()
        json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
        assert len(said) == len(report["runs"][0]["problems"])


def test_every_figure_is_drawn_of_files_with_several_wrong_values(tmp_path: Path) -> None:
    """Some of all combinations, the same each time."""
    run = rich_run(tmp_path / "toy")
    draws = random.Random(0)
    originals = {name: (run / name).read_text() for name in FILES[:3]}
    for _ in range(4):
        for name, text in originals.items():
            value = json.loads(text)
            for at in draws.sample([at for at in positions(value) if len(at) > 1], 2):
                try:
                    value = replaced(value, at, draws.choice(WRONG))
                except (KeyError, TypeError, IndexError):
                    continue  # within what the first has replaced
            toy_runs.write_json(run / name, value)
        try:
            report = write_report([run], tmp_path / "out", log=lambda line: None)
        except (InputError, RunFailed) as error:
            raise AssertionError((run / FILES[0]).read_text()) from error
        assert not [each for each in report["warnings"] if "could not be drawn" in each]


@pytest.mark.parametrize(
    ("place", "wrong", "sentence"),
    [
        ("mt_bench.judge", [], "mt_bench.judge is [] where a text belongs; it is left out"),
        ("mt_bench.questions", "x", "mt_bench.questions is 'x' where a number belongs; it is left out"),
        ("mt_bench.usage", "x", "mt_bench.usage is 'x' where a JSON object belongs; it is left out"),
        (
            "mt_bench.usage.completion_tokens",
            [1],
            "mt_bench.usage.completion_tokens is [1] where a number belongs; it is left out",
        ),
        ("mt_bench.categories", "x", "mt_bench.categories is 'x' where a list of texts belongs; it is left out"),
        (
            "mt_bench.models.dae.categories.math.rows",
            {},
            "mt_bench.models.dae.categories.math.rows is {} where a number belongs; the model's figures of it are left "
            "out",
        ),
        (
            "datasets.shop.tasks.shelf.rows",
            {},
            "datasets.shop.tasks.shelf.rows is {} where a number belongs; it is left out",
        ),
        ("datasets", [], "datasets is [] where a JSON object belongs; it is left out"),
        ("reference", [1], "reference is [1], which is none of its models; it is left out"),
        ("models.dae.general.low", 10**400, "has numbers beyond 1e+100, which are left out"),
        ("warnings.0", "\ud800", "has broken characters, which are left out"),
        (
            "tasks.models.dae.arc.higher_is_better",
            "no",
            "tasks.models.dae.arc.higher_is_better is 'no' where true or false belongs; the model's figures of it are "
            "left out",
        ),
    ],
)
def test_what_is_said_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, wrong: Any, sentence: str
) -> None:
    monkeypatch.setattr(preceptor.report.figures, "draw", lambda report, failed: {})
    run = rich_run(tmp_path / "toy")
    path = run / "scores" / "scores.json"
    at = tuple(int(key) if key.isdigit() else key for key in place.split("."))
    toy_runs.write_json(path, replaced(json.loads(path.read_text()), at, wrong))
    report = write_report([run], tmp_path / "out", log=lambda line: None)
    assert report["runs"][0]["problems"] == [f"scores: scores.json: {sentence}"]


def test_a_figure_without_one_end_of_its_interval_has_none(tmp_path: Path) -> None:
    run = rich_run(tmp_path / "toy")
    path = run / "scores" / "scores.json"
    value = json.loads(path.read_text())
    value["models"]["dae"]["general"]["low"] = None
    value["models"]["dae"]["over_reference"]["general"]["low"] = None
    value["mt_bench"]["differences"][0]["high"] = None
    toy_runs.write_json(path, value)
    report = write_report([run], tmp_path / "out", log=lambda line: None)
    assert report["models"]["dae"]["general"] == {"score": 0.75, "low": None, "high": None}
    ends = {each["measure"]: (each["low"], each["high"], each["distinguishable"]) for each in report["differences"]}
    assert ends["general"] == ends["mt_bench"] == (None, None, False)
    assert not [each for each in report["warnings"] if "could not be drawn" in each]
