"""The command line starts at once: what it need not import, it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from first_folder import rows, write_model, write_rows, write_store
from preceptor.cli.commands import COMMANDS

HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "scipy", "pyarrow", "matplotlib", "rich", "openai")
PROGRAM = """\
import json, sys
from preceptor.cli import main
code = main(sys.argv[1:])
names = {names!r}
print(json.dumps([code, [name for name in names if name in sys.modules]]), file=sys.stderr)
"""
READING = (*HEAVY, "numpy", "pydantic", "tokenizers")


def imported(arguments: list[str], names: tuple[str, ...], folder: Path) -> tuple[int, list[str]]:
    """The exit code of a command, and which of the modules it imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(names=names), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    code, found = json.loads(done.stderr.splitlines()[-1])
    return code, found


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["rnu"],
        *([name, "--help"] for name in COMMANDS),
        ["completion", "bash"],
        ["run"],
        ["init", "--teacher", "x"],
        ["evaluate"],
        ["report"],
        ["store", "info", "nosuch"],
    ],
    ids=" ".join,
)
def test_explaining_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    assert imported(arguments, READING, tmp_path)[1] == []


def test_a_wrong_recipe_is_refused_without_torch(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: x\nstages: {s: {kind: sfd}}\n")
    for command in ("run", "plan"):
        assert imported([command, "r.yaml"], (*HEAVY, "numpy"), tmp_path) == (2, [])


def test_a_first_recipe_is_written_without_torch(tmp_path: Path) -> None:
    write_model(tmp_path / "teacher")
    write_model(tmp_path / "student")
    write_rows(tmp_path / "chats.jsonl", rows(range(20)))
    given = ["init", "--teacher", "./teacher", "--student", "./student", "--data", "chats.jsonl"]
    assert imported(given, (*HEAVY, "numpy"), tmp_path) == (0, [])


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    loaded = ("torch", "transformers", "peft", "datasets", "accelerate")
    assert imported(["report", "nosuch"], loaded, tmp_path) == (2, [])


def test_a_store_is_looked_at_without_torch(tmp_path: Path) -> None:
    write_store(tmp_path / "store")
    for what in ("info", "verify"):
        assert imported(["store", what, "store"], (*HEAVY, "pydantic", "tokenizers"), tmp_path) == (0, [])
