"""Run directories of strangers: links to other files, pipes, bombs, and what a terminal or browser would obey."""

from __future__ import annotations

import json
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import preceptor.report.figures
import toy_runs
from preceptor.cli import main
from preceptor.errors import printable
from preceptor.report import lines, write_report
from preceptor.report.read import read_run
from preceptor.report.sources import places, recipe_value

SECRET = "a line of somebody's own file"


def read(path: Path) -> tuple[Any, list[str]]:
    [place] = places(path)
    run = read_run(place)
    return run, run.problems


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return toy_runs.whole_run(tmp_path / "runs" / "toy")


FILES = {
    "recipe.yaml": "recipe.yaml: cannot be read as text",
    "kd/stage.json": "stage.json: cannot be read (it is a link that leads out of the run)",
    "kd/metrics.jsonl": "kd: metrics.jsonl: cannot be read (it is a link that leads out of the run)",
    "scores/scores.json": "scores: scores.json: cannot be read (it is a link that leads out of the run)",
    "scores/predictions/dae.jsonl": "scores: predictions/dae.jsonl: cannot be read (it is a link that leads out of",
}


@pytest.mark.parametrize("file", FILES)
def test_a_link_out_of_the_run_is_not_followed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setattr(preceptor.report.figures, "draw", lambda report, failed: {})
    outside = tmp_path / "outside"
    outside.write_bytes((run / file).read_bytes() + f"# {SECRET}".encode())
    (run / file).unlink()
    (run / file).symlink_to(outside)
    _, problems = read(run)
    assert any(FILES[file] in problem for problem in problems)
    write_report([run], tmp_path / "out", log=lambda line: None)
    assert SECRET not in (tmp_path / "out" / "report.html").read_text() + (tmp_path / "out" / "report.json").read_text()


def test_a_folder_and_a_models_name_that_lead_out(run: Path, tmp_path: Path) -> None:
    elsewhere = toy_runs.whole_run(tmp_path / "elsewhere")
    (run / "dae").rename(tmp_path / "dae")
    (run / "dae").symlink_to(tmp_path / "dae")
    predictions = run / "scores" / "predictions"
    predictions.rename(tmp_path / "predictions")
    predictions.symlink_to(tmp_path / "predictions")
    found, problems = read(run)
    assert [stage.name for stage in found.stages] == ["kd", "scores"]
    assert "dae: is a link that leads out of the run; left out" in problems
    assert found.stages[1].predictions == {}
    predictions.unlink()
    (tmp_path / "predictions").rename(predictions)
    scores = json.loads((run / "scores" / "scores.json").read_text())
    name = "../../../../elsewhere/scores/predictions/kd"
    scores["models"] = {name: scores["models"]["kd"]}
    (run / "scores" / "scores.json").write_text(json.dumps({**scores, "reference": name, "expert": None}))
    assert (predictions / f"{name}.jsonl").resolve() == elsewhere / "scores" / "predictions" / "kd.jsonl"
    found, problems = read(run)
    assert found.stages[1].predictions == {}
    assert any("it is a link that leads out of the run" in problem for problem in problems)


@pytest.mark.parametrize(
    "file", ["recipe.yaml", "kd/stage.json", "kd/metrics.jsonl", "scores/scores.json", "kd/error.txt"]
)
def test_a_pipe_is_not_waited_for(run: Path, file: str) -> None:
    if file.endswith("error.txt"):
        (run / "kd" / "stage.json").rename(run / "kd" / "started.json")
    (run / file).unlink(missing_ok=True)
    os.mkfifo(run / file)
    found, _ = read(run)
    assert {"dae", "scores"} <= {stage.name for stage in found.stages}


def test_a_file_too_large_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LARGEST", 50)
    _, problems = read(run)
    assert any("metrics.jsonl: cannot be read (it has " in problem for problem in problems)


def test_a_recipe_of_aliases_is_no_recipe(run: Path) -> None:
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    for text in (
        "\n".join([*bomb, "stages: *a11"]),
        "stages: &a {b: *a}",
        "[" * 5_000,
        "stages: !!python/name:os.system {}",
    ):
        (run / "recipe.yaml").write_text(text)
        assert recipe_value(run / "recipe.yaml") == {}
    assert "recipe.yaml: is no recipe; it is shown as it is" in read(run)[1]


def test_lines_of_other_encodings_and_depths_are_counted(run: Path) -> None:
    with (run / "kd" / "metrics.jsonl").open("ab") as stream:
        stream.write('{"step": 9}\n'.encode("utf-16"))
        stream.write(
            b'{"a": ' * 50_000 + b"\n" + b'{"step": 1e999}\n{"step": 10, "loss": NaN}\n\x00\xff\n{"step": 11, "lo'
        )
    found, problems = read(run)
    assert [line["step"] for line in found.stages[0].metrics] == [1, 2, 3, 10]
    assert any("kd: metrics.jsonl: " in problem for problem in problems)


# --- what would be obeyed -------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What of a page runs or is fetched, other than the figures' own definitions."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts = 0
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag in ("iframe", "object", "embed", "base", "img", "link", "foreignobject", "animate", "set", "image"):
            self.wrong.append(tag)
        for name, value in attrs:
            inside = (value or "").startswith(("#", "https://arxiv.org/"))
            if name.startswith("on") or name in ("src", "srcdoc", "formaction", "action"):
                self.wrong.append(f"{tag} {name}")
            if name in ("href", "xlink:href") and not inside:
                self.wrong.append(f"{tag} {name}={value}")
            if "javascript:" in (value or "").lower() and name not in ("data-text", "title", "aria-label"):
                self.wrong.append(f"{tag} {name}={value}")


def test_nothing_of_a_hostile_run_is_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = toy_runs.hostile_run(tmp_path)
    assert main(["report", str(run), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert printable(text, keep="\n") == text
    page = Page()
    page.feed((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    page.close()
    assert page.wrong == []
    assert page.scripts == 2
    for figure in (tmp_path / "out" / "figures").glob("*.svg"):
        drawn = Page()
        drawn.feed(figure.read_text(encoding="utf-8"))
        assert (drawn.scripts, drawn.wrong) == (0, []), figure.name
    monkeypatch.setattr(preceptor.report.figures, "draw", lambda report, failed: {})
    assert main(["report", str(run), "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr()
    assert printable(printed.out, keep="\n") == printed.out
    assert json.loads(printed.out)["models"]


@pytest.mark.parametrize(("link", "said"), [("report", "say where to write with --out"), ("report/figures", "--out")])
def test_a_report_that_would_be_written_elsewhere(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], link: str, said: str
) -> None:
    (tmp_path / "home").mkdir()
    (run / link).parent.mkdir(exist_ok=True)
    (run / link).symlink_to(tmp_path / "home")
    assert main(["report", str(run)]) == 2
    err = capfd.readouterr().err
    assert f"error: report: {run / link} is a symbolic link" in err
    assert said in err
    assert list((tmp_path / "home").iterdir()) == []
