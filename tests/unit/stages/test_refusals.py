"""Real models that must not be distilled into each other are refused in one sentence, before any training."""

from __future__ import annotations

from pathlib import Path

import pytest

from preceptor.cli import main

RECIPE = """\
name: refused
runs_dir: runs
data:
  stories: {path: $PRECEPTOR_DATA/text/tinystories_sample.txt}
stages:
  kd:
    kind: distill
    student: $PRECEPTOR_DATA/weights/STUDENT
    teacher: $PRECEPTOR_DATA/weights/TEACHER
    data: stories
    training: {max_steps: 1}
"""


@pytest.mark.parametrize(
    ("student", "teacher", "what_differs"),
    [
        (
            "stories260K-hf",
            "babyllama105-hf",
            "the student's tokenizer (512 tokens) is not the teacher's (105 tokens): token 3 is '<0x00>' for the "
            "student and '▁' for the teacher",
        ),
        (
            "babyllama105-hf",
            "tinystories-bitnet-3M-hf",
            "the student's tokenizer (105 tokens) is not the teacher's (512 tokens): token 3 is '▁' for the student "
            "and '<0x00>' for the teacher",
        ),
    ],
)
def test_models_of_other_vocabularies(
    student: str,
    teacher: str,
    what_differs: str,
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PRECEPTOR_DATA", str(data_folder))
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("STUDENT", student).replace("TEACHER", teacher), encoding="utf-8")

    assert main(["run", str(recipe)]) == 2

    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    mend = "; distil between models of one tokenizer, or train the student from `init` with the teacher's"
    assert said == [f"error: {recipe}: stages.kd: {what_differs}{mend}"]
    assert not (tmp_path / "runs").exists()
