"""What `preceptor plan` says about options it cannot take."""

from __future__ import annotations

from pathlib import Path

import pytest

from preceptor.cli import main


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--device-memory", "80"],
            "preceptor plan: --device-memory is '80'; write a number and a unit, such as 80GB (10^9 bytes) or 80GiB",
        ),
        (
            ["--device-memory", "0GB"],
            "preceptor plan: --device-memory is '0GB'; write a number and a unit, such as 80GB (10^9 bytes) or 80GiB",
        ),
        (["--devices", "0"], "preceptor plan: --devices is '0'; write a whole number of at least 1"),
        (["--devices", "two"], "preceptor plan: --devices is 'two'; write a whole number of at least 1"),
        (
            ["--rate", "fast"],
            "preceptor plan: --rate is 'fast'; write TFLOP per second as a number above 0, such as 400",
        ),
        (["--rate", "0"], "preceptor plan: --rate is '0'; write TFLOP per second as a number above 0, such as 400"),
    ],
)
def test_options(
    options: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(
        "name: x\nstages: {a: {kind: init, config: {model_type: llama, vocab_size: 16}}}\n"
    )
    assert main(["plan", "recipe.yaml", *options]) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"
