"""How a recipe with one mistake is refused: one sentence, exit code 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from preceptor.cli import main


def check_refusal(good: str, case: tuple[str, str, str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs `good` with the first text of `case` replaced by the second, which is refused with the third.

    `folder` is the working directory, and empty.
    """
    old, new, sentence = case
    assert good.count(old) == 1, "the case must break one place"
    (folder / "recipe.yaml").write_text(good.replace(old, new))

    assert main(["run", "recipe.yaml"]) == 2

    output = capsys.readouterr()
    assert output.err == f"error: recipe.yaml:{sentence}\n"
    assert output.out == ""
    assert [file.name for file in folder.iterdir()] == ["recipe.yaml"]
