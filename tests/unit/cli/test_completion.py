"""Completion scripts know every word that the commands know, and real shells complete with them."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from preceptor.cli import main
from preceptor.cli.commands import COMMANDS
from preceptor.cli.completion import SHELLS
from preceptor.cli.completion_scripts import script
from preceptor.cli.described import described, options_of

EVERY = list(COMMANDS.values())
RECIPE = """\
name: x
data:
  rows: {path: rows.jsonl}
stages:
  # teacher: not a stage
  kd:
    kind: distill
    student: ./student
  kept-back: {kind: sft, model: stage:kd, data: rows}
overlap: {drop_from: rows}
"""


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"needs {shell}")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_option_and_choice_is_in_the_script(shell: str) -> None:
    text = script(shell, EVERY)
    for command in EVERY:
        if shell == "bash":
            part = next(line for line in text.splitlines() if line.strip().startswith(f"{command.name}) words="))
        elif shell == "zsh":
            part = text.partition(f"        {command.name})\n")[2].partition(";;")[0]
        else:
            part = "\n".join(line for line in text.splitlines() if f"from {command.name}'" in line)
        for option in options_of(described(command)):
            for flag in option.flags:
                word = (f"-l {flag[2:]} " if flag[2:] else f"-s {flag[1:]} ") if shell == "fish" else flag
                word = f"-s {flag[1:]} " if shell == "fish" and not flag.startswith("--") else word
                assert word in part + " ", (command.name, flag)
        for each in described(command):
            assert all(word in text for word in each.words)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_prints_the_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == script(shell, EVERY) + "\n"
    assert main(["completion", shell, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": shell, "script": script(shell, EVERY)}


@pytest.mark.parametrize("shell", [pytest.param(each, marks=needs(each)) for each in SHELLS])
def test_the_shell_reads_its_script(shell: str, tmp_path: Path) -> None:
    file = tmp_path / "completion"
    file.write_text(script(shell, EVERY))
    done = subprocess.run([shell, "-n", str(file)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def in_bash(words: list[str], folder: Path) -> list[str]:
    """What bash would offer for the last of the words."""
    program = (
        f"{script('bash', EVERY)}\nCOMP_WORDS=({' '.join(repr(word) for word in words)})\n"
        f"COMP_CWORD={len(words) - 1}\n_preceptor\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", program], cwd=folder, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


@needs("bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["r"], ["run", "report"]),
        (["--v"], ["--version"]),
        (["he"], ["help"]),
        (["help", "pl"], ["plan"]),
        (["run", "--o"], ["--only", "--out"]),
        (["run", "recipe.yaml", "--only", ""], ["kd", "kept-back"]),
        (["run", "recipe.yaml", "--redo", "ke"], ["kept-back"]),
        (["run", "--redo", ""], []),
        (["init", "--quantize", ""], ["4bit", "8bit"]),
        (["init", "--teacher", ""], []),
        (["store", "v"], ["verify"]),
        (["store", "--json", ""], ["info", "verify"]),
        (["store", "info", ""], []),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["demo", "--s"], ["--seeds"]),
        (["nothing", "--"], []),
    ],
    ids=lambda value: " ".join(value),
)
def test_bash_completes(words: list[str], offered: list[str], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert in_bash(["preceptor", *words], tmp_path) == offered


def typed(shell: list[str], keys: str, wanted: str, folder: Path, setup: str) -> str:
    """What a terminal shows after keys were pressed in an interactive shell; waits for `wanted` at most seconds."""
    ours, theirs = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb", "PS1": "ready> ", "LC_ALL": "C"}
    process = subprocess.Popen(
        shell, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment, start_new_session=True
    )
    os.close(theirs)
    shown = ""

    def read_until(text: str) -> None:
        nonlocal shown
        end = time.monotonic() + 120
        while text not in shown and time.monotonic() < end:
            if select.select([ours], [], [], 0.2)[0]:
                shown += os.read(ours, 65536).decode(errors="replace")

    try:
        os.write(ours, f"{setup}; echo se''t\n".encode())
        read_until("set\r\n")
        shown = ""
        os.write(ours, keys.encode())
        read_until(wanted)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return shown


@needs("bash")
def test_a_tab_in_bash(tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(script("bash", EVERY))
    (tmp_path / "my recipe.yaml").write_text(RECIPE)
    shell = ["bash", "--norc", "--noprofile", "-i"]
    assert "preceptor completion " in typed(shell, "preceptor comp\t", "completion ", tmp_path, ". ./completion")
    shown = typed(shell, "preceptor run my\t--on\t", "--only", tmp_path, ". ./completion")
    assert r"preceptor run my\ recipe.yaml --only" in shown.replace("\x07", "")


@needs("zsh")
def test_a_tab_in_zsh(tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(script("zsh", EVERY))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    setup = "autoload -U compinit; compinit -u -D; . ./completion"
    shown = typed(["zsh", "-f", "-i"], "preceptor run recipe.yaml --only kept\t", "kept-back", tmp_path, setup)
    assert "kept-back" in shown
    assert "verify" in typed(["zsh", "-f", "-i"], "preceptor store ver\t", "verify", tmp_path, setup)
    assert "--published" in typed(["zsh", "-f", "-i"], "preceptor report --publ\t", "--published", tmp_path, setup)


@needs("fish")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("preceptor comp", ["completion"]),
        ("preceptor run recipe.yaml --only k", ["kd", "kept-back"]),
        ("preceptor report --publ", ["--published"]),
        ("preceptor init --quantize ", ["4bit", "8bit"]),
        ("preceptor help sto", ["store"]),
    ],
)
def test_fish_completes(line: str, offered: list[str], tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(script("fish", EVERY))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source ./completion; complete -C '{line}'"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert [found.split("\t")[0] for found in done.stdout.splitlines()] == offered
