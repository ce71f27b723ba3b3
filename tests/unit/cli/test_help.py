"""What the command line says of itself: complete, with true examples, in 80 columns; and of words it does not know."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys

import pytest

import preceptor
from preceptor.cli import main
from preceptor.cli.commands import COMMANDS
from preceptor.cli.parser import examples_text


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def examples(text: str) -> list[list[str]]:
    """The commands under `examples:`, as words."""
    body = text.partition("examples:\n")[2].partition("\n\n")[0].replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in body.splitlines()]


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_fits_80_columns_and_its_examples_hold(name: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["--help"] if name is None else [name, "--help"], capsys)
    assert max(map(len, text.splitlines())) <= 80
    commands = examples(text)
    assert commands
    for program, command, *words in commands:
        assert program == "preceptor"
        assert name in (None, command)
        until = words.index(">") if ">" in words else len(words)
        COMMANDS[command].parser().read(words[:until])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_word_is_explained(name: str) -> None:
    for action in COMMANDS[name].parser()._actions:
        assert action.help
        assert action.nargs == 0 or isinstance(action.metavar, str), action
        assert not action.help.endswith("."), action.help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_gives_its_result_as_json(name: str) -> None:
    assert "--json" in COMMANDS[name].parser()._option_string_actions


def test_the_overview_names_every_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = said([], capsys)
    listed = text.partition("commands:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert [line.split(None, 1)[1] for line in listed] == [command.summary for command in COMMANDS.values()]
    for code in ("0 ", "1 ", "2 ", "130 ", "143 "):
        assert code in text.partition("exit codes:")[2]
    assert said(["help"], capsys) == said(["-h"], capsys) == text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_its_own_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(["help", name], capsys) == said([name, "-h"], capsys)


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(["--version"], capsys) == f"preceptor {preceptor.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "preceptor", "--version"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"preceptor {preceptor.__version__}\n")


ALL = "demo, init, plan, run, evaluate, report, store or completion"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rnu"], f"preceptor: 'rnu' is no command (did you mean 'run'?); write {ALL}, and see preceptor --help"),
        (
            ["help", "pln"],
            f"preceptor: 'pln' is no command (did you mean 'plan'?); write {ALL}, and see preceptor --help",
        ),
        (["--json"], f"preceptor: --json needs a command before it; write {ALL} first, and see preceptor --help"),
        (
            ["run", "r.yaml", "--onyl", "kd"],
            "preceptor run: --onyl is no option (did you mean '--only'?); see preceptor run --help",
        ),
        (["run", "--only"], "preceptor run: --only: a value is missing; see preceptor run --help"),
        (["demo", "now"], "preceptor demo: 'now' is too much; see preceptor demo --help"),
        (
            ["demo", "--seeds", "0"],
            "preceptor demo: --seeds is '0'; write a whole number of at least 1; see preceptor demo --help",
        ),
        (
            ["store", "inof", "d"],
            "preceptor store: info|verify is 'inof' (did you mean 'info'?); write info or verify; see preceptor store "
            "--help",
        ),
        (
            ["completion", "tcsh"],
            "preceptor completion: bash|zsh|fish is 'tcsh'; write bash, zsh or fish; see preceptor completion --help",
        ),
        (["report"], "preceptor report: no run is given; write preceptor report RUN with a run's directory"),
        (
            ["evaluate"],
            "preceptor evaluate: no model is given; write for example preceptor evaluate ./student --general "
            "general.jsonl",
        ),
        (
            ["evaluate", "./student"],
            "preceptor evaluate: there is nothing to score models on; add --general FILE, --domain FILE, --mt-bench, "
            "--alpaca-eval or --tasks",
        ),
        (
            ["plan"],
            "preceptor plan: no recipe is given; write preceptor plan RECIPE with the path of a YAML file, and see "
            "preceptor init for a first one",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_that_are_not_known(
    arguments: list[str],
    sentence: str,
    tmp_path: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_a_recipe_that_is_here_is_named_and_not_run(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(str(tmp_path))
    with open("recipe.yaml", "w") as file:  # noqa: PTH123
        file.write("name: x\n")
    assert main(["run"]) == 2
    assert "write preceptor run recipe.yaml for the one in this folder" in capsys.readouterr().err


def test_an_option_stays_with_its_value_where_an_example_is_broken() -> None:
    text = examples_text([f"preceptor x {'--long value ' * 8}'two words'"])
    assert all(len(line) <= 78 for line in text.splitlines())
    assert examples(text + "\n\n") == [["preceptor", "x", *["--long", "value"] * 8, "two words"]]
    assert not any(line.endswith("--long \\") for line in text.splitlines())


def test_the_one_stage_that_evaluate_redoes_is_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    from preceptor.recipe.from_options import STAGE

    options = COMMANDS["evaluate"].parser().read(["m", "--redo", STAGE])
    assert isinstance(options, argparse.Namespace)
    assert options.redo == STAGE
