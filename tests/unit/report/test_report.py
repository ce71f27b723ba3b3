"""The whole of `write_report`: what a finished run gives, what it costs to import, and what a failure leaves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import preceptor.report
import preceptor.report.figures
import preceptor.report.page
import toy_runs
from preceptor.errors import RunFailed
from preceptor.report import RunSource, write_report


class Figure:
    """What is written of a drawn figure."""

    svg = "<svg/>"
    png = b"png"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the drawing out: these tests are about the data."""
    monkeypatch.setattr(preceptor.report.figures, "draw", lambda report, failed: {"losses": Figure()})
    monkeypatch.setattr(preceptor.report.page, "render", lambda report, figures: f"<title>{report['title']}</title>")


def report(*sources: Path | RunSource, out: Path, **options: Any) -> dict[str, Any]:
    return write_report(sources, out, log=lambda line: None, **options)


def test_importing_and_reading_needs_no_torch(tmp_path: Path) -> None:
    """`preceptor report` has to be there in a moment; torch and transformers take seconds."""
    toy_runs.whole_run(tmp_path / "toy")
    code = (
        "import sys; from pathlib import Path; import preceptor.report\n"
        "from preceptor.report.read import read_run; from preceptor.report.sources import places\n"
        "from preceptor.report.summary import summarise\n"
        "summarise([read_run(place) for place in places(Path(sys.argv[1]))])\n"
        "import preceptor.report.page\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'peft') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "toy")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("undrawn")
def test_what_a_whole_run_gives(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    found = report(run, out=tmp_path / "out", title="A title")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == found
    assert (tmp_path / "out" / "report.html").read_text() == "<title>A title</title>"
    assert found["figures"] == ["figures/losses.svg", "figures/losses.png"]
    assert (tmp_path / "out" / "figures" / "losses.png").read_bytes() == b"png"
    assert (found["format"], found["seconds"]) == (1, 180.0)
    assert [(each["id"], each["seed"], each["problems"]) for each in found["runs"]] == [("toy", 1, [])]
    stages = found["runs"][0]["stages"]
    assert [(each["name"], each["status"]) for each in stages] == [("kd", "done"), ("dae", "done"), ("scores", "done")]
    assert stages[0]["settings"] == {"kind": "distill", "rows": 8}  # null is left out
    assert [each["results"] for each in stages] == [{"steps": 3}, {"steps": 3}, {}]
    assert stages[0]["data"]["shop"]["targets"] == 16
    dae = found["models"]["dae"]
    assert dae["general"] == {"score": 0.75, "low": 0.65, "high": 0.85}
    assert dae["retention"] == {"value": 1.5, "low": 1.4, "high": 1.6}
    assert dae["tasks"]["shelf"] == {
        "score": 0.5, "low": 0.4, "high": 0.6, "role": "domain", "dataset": "shop", "metric": "exact"
    }  # fmt: skip
    assert dae["flips"]["domain"]["gained"]["count"] == 2
    assert (dae["run"], dae["runs"], dae["seeds"], dae["seconds"]) == ("toy", ["toy"], 1, 60.0)
    kinds = {name: (model["kind"], model["pareto"]) for name, model in found["models"].items()}
    assert kinds == {"kd": ("reference", False), "expert": ("expert", True), "dae": ("model", True)}
    assert found["datasets"]["shop"]["tasks"]["shelf"]["majority"] == 0.5
    assert found["curves"][1] == {
        "run": "toy",
        "stage": "dae",
        "title": "dae",
        "kind": "distill",
        "seed": 1,
        "finished": True,
        "step": [1, 2, 3],
        "series": {"loss": [9.0, 8.0, 7.0], "logits": [4.5, 4.0, 3.5], "grad_norm": [1.0, 1.0, 1.0]},
    }
    assert found["examples_total"] == {"forgotten": 2, "gained": 4}
    assert found["published"] == []
    assert (found["mt_bench"], found["alpaca_eval"], found["tasks"]) == (None, None, None)


@pytest.mark.usefixtures("undrawn")
def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    for name in ("one", "two"):
        report(run, out=tmp_path / name, published=True)
    assert (tmp_path / "one" / "report.json").read_bytes() == (tmp_path / "two" / "report.json").read_bytes()


@pytest.mark.usefixtures("undrawn")
def test_published_rows_come_on_request_and_are_never_best(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    found = report(run, out=tmp_path / "out", published=True)
    row = next(each for each in found["published"] if each["title"] == "Flip-2x7B β")
    assert (row["mt_bench"], row["alpaca_eval"], row["source"]) == (7.9, 93.04, "arXiv 2406.19112")
    entry = found["models"][row["model"]]
    assert (entry["kind"], entry["seeds"], entry["run"], entry["general"]) == ("published", 0, None, None)
    assert entry["mt_bench"]["score"] == {"score": 7.9, "low": None, "high": None}
    mixtral = found["models"]["published/Mixtral-8x7B-Instruct-v0.1"]["alpaca_eval"]
    assert mixtral["win_rate"] == 94.78
    assert mixtral["high"] - mixtral["low"] == pytest.approx(2 * 1.96 * 0.78, rel=1e-3)
    assert sum("published rows come from other judges" in each for each in found["warnings"]) == 1
    fields = set(found["models"]["dae"])
    assert all(model.keys() == fields for model in found["models"].values())


def test_a_figure_that_fails_is_said_and_the_rest_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(report: dict[str, Any], failed: Callable[[str, Exception], None]) -> dict[str, Figure]:
        failed("retention", ValueError("no\nroom"))
        return {"losses": Figure()}

    monkeypatch.setattr(preceptor.report.figures, "draw", draw)
    monkeypatch.setattr(preceptor.report.page, "render", lambda report, figures: "; ".join(report["warnings"]))
    said: list[str] = []
    write_report([toy_runs.whole_run(tmp_path / "toy")], tmp_path / "out", log=said.append)
    sentence = "the figure retention could not be drawn (ValueError: no room); its data are in report.json"
    assert sentence in said
    assert sentence in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "figures" / "losses.svg").exists()


def test_a_page_that_fails_leaves_the_data_and_no_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> str:
        raise KeyError("column")

    monkeypatch.setattr(preceptor.report.figures, "draw", lambda report, failed: {})
    monkeypatch.setattr(preceptor.report.page, "render", fails)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("of yesterday")
    (tmp_path / "out" / "report.json").write_text('{"preceptor": "0.1.0"}')
    with pytest.raises(RunFailed, match=r"report: report.html could not be made \(KeyError: 'column'\)"):
        report(toy_runs.whole_run(tmp_path / "toy"), out=tmp_path / "out")
    assert (tmp_path / "out" / "report.json").exists()
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_figures_of_an_earlier_report_go_and_other_files_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "figures").mkdir(parents=True)
    old = ["figures/old.png", "figures/losses.svg", "../toy/recipe.yaml", "figures/notes.txt", 3]
    (out / "report.json").write_text(json.dumps({"preceptor": "0.1.0", "figures": old}))
    for name in ("old.png", "notes.txt", "mine.png"):
        (out / "figures" / name).write_text("x")
    run = toy_runs.whole_run(tmp_path / "toy")
    report(run, out=out)
    assert sorted(path.name for path in (out / "figures").iterdir()) == [
        "losses.png", "losses.svg", "mine.png", "notes.txt"
    ]  # fmt: skip
    assert (run / "recipe.yaml").exists()


def test_the_real_page_and_figures_are_written(tmp_path: Path) -> None:
    run = toy_runs.whole_run(tmp_path / "toy")
    found = report(run, out=tmp_path / "out", published=True)
    assert found["figures"]
    assert all((tmp_path / "out" / name).stat().st_size > 500 for name in found["figures"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "toy" in page
    assert not [each for each in found["warnings"] if "could not be drawn" in each]


def test_every_field_is_documented(tmp_path: Path) -> None:
    from preceptor.report.read import read_run
    from preceptor.report.sources import places
    from preceptor.report.summary import summarise

    (place,) = places(toy_runs.whole_run(tmp_path / "toy"))
    found = summarise([read_run(place)])
    page = (Path(__file__).parents[3] / "docs" / "report.md").read_text(encoding="utf-8")
    names = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`]+)`", page.partition("## `report.json`")[2]))))
    parts = [found, found["models"]["dae"], found["runs"][0], found["runs"][0]["stages"][0], found["curves"][0]]
    parts += [
        found["examples"][0],
        found["examples"][0]["answers"][0],
        found["datasets"]["shop"],
        found["differences"][0],
    ]
    assert {key for part in parts for key in part} <= names
