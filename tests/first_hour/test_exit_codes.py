"""The documented exit codes, over all commands: 0 done, 1 failed, 2 wrong input, 130 and 143 stopped by a signal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preceptor.cli import main
from preceptor.cli.commands import COMMANDS
from preceptor.cli.top import overview
from preceptor.errors import InputError, InputErrors, RunFailed

DOCUMENTED = {int(code) for code in re.findall(r"(?m)^  (\d+) ", overview([]).partition("exit codes:")[2])} | {143}
MAKES = {
    "demo": ("preceptor.pocket.demo.main", ["demo"]),
    "init": ("preceptor.starter.start", ["init", "--teacher", "t", "--student", "s", "--data", "o/d"]),
    "plan": ("preceptor.plan.plan", ["plan", "r.yaml", "--quick"]),
    "run": ("preceptor.runs.run", ["run", "r.yaml"]),
    "evaluate": ("preceptor.runs.run", ["evaluate", "m", "--tasks", "arc_easy"]),
    "report": ("preceptor.report.write_report", ["report", "d"]),
    "store": ("preceptor.teachers.store_report.info", ["store", "info", "."]),
    "completion": ("preceptor.cli.completion_scripts.script", ["completion", "bash"]),
}
ENDS: list[tuple[BaseException, int, list[str]]] = [
    (InputError("where: what"), 2, ["where: what"]),
    (InputErrors(["one", "two"]), 2, ["one", "two"]),
    (RunFailed("it broke; go on"), 1, ["it broke; go on"]),
    (KeyboardInterrupt(), 130, ["interrupted"]),
    (KeyboardInterrupt("stopped; go on"), 130, ["stopped; go on"]),
]


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: object, **__: object) -> None:
        raise error

    return function


def test_every_command_is_here() -> None:
    assert list(MAKES) == list(COMMANDS)
    assert {code for _, code, _ in ENDS} | {0, 143} == DOCUMENTED


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize(("error", "code", "said"), ENDS, ids=lambda value: str(value) if type(value) is int else "")
def test_what_a_command_raises_decides_its_code(
    name: str,
    error: BaseException,
    code: int,
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("{name: r, stages: {s: {kind: init, config: {model_type: llama}}}}")
    place, arguments = MAKES[name]
    monkeypatch.setattr(place, raising(error))
    assert main(arguments) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [line if code == 130 else f"error: {line}" for line in said]
    assert main([*arguments, "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"exit_code": code, "errors": said}
