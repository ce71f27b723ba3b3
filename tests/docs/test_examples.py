"""The example scripts run as they are, on a CPU without a network."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import toy_place
from snippets import ROOT

FIRST_STEPS = ROOT / "examples" / "first_steps.py"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a script in an empty folder, without a network; returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def ran(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
        return capfd.readouterr().out

    return ran


@pytest.mark.slow
def test_the_first_steps_teach_the_student(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run(FIRST_STEPS.name)
    right = {name: float(score) for name, score in re.findall(r"^(\w+): (\d\.\d\d) right", printed, re.MULTILINE)}
    assert right["teacher"] == 1.0
    assert right["kd"] > 0.9
    assert "last of fade: e\n" in printed
    for term in ("logits", "next_token", "attention"):
        assert re.search(rf"^{term}: \d\.\d+ nats per target$", printed, re.MULTILINE)
    page = tmp_path / "first-steps" / "runs" / "words" / "report" / "report.html"
    assert page.stat().st_size > 10_000


@pytest.mark.slow
def test_the_plain_loop_runs(run: Callable[..., str], tmp_path: Path) -> None:
    toy_place.put_models({"models": ["teacher", "student"]}, tmp_path)
    toy_place.write_rows(tmp_path / "rows.jsonl", "rows")
    assert "step 2/2" in run("plain_loop.py", "teacher", "student", "rows.jsonl", "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_the_first_steps_are_cells() -> None:
    """In the percent format every cell begins with `# %%`, and Markdown cells are comments throughout."""
    head, *cells = re.split(r"^# %%", FIRST_STEPS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert "format_name: percent" in head
    kinds = [cell.partition("\n")[0] for cell in cells]
    assert set(kinds) == {"", " [markdown]"}
    for kind, cell in zip(kinds, cells):
        lines = cell.splitlines()[1:]
        if kind == " [markdown]":
            assert all(line.startswith("#") or not line for line in lines), cell
        else:
            compile("\n".join(lines), FIRST_STEPS.name, "exec")
    links = re.findall(r"\]\(([^)]+)\)", FIRST_STEPS.read_text(encoding="utf-8"))
    assert links
    assert all((FIRST_STEPS.parent / link).exists() for link in links)
