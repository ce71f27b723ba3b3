"""AlpacaEval outputs: the official file, answers that depend on seed and instruction alone, and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from answerers import Echo, Killed
from preceptor.evaluation.alpaca_eval.files import Instruction, instructions_of, read_outputs
from preceptor.evaluation.alpaca_eval.outputs import answer_alpaca_eval
from preceptor.evaluation.local_answers import LocalAnswerer
from preceptor.recipe.suites import AlpacaEvalSpec

SPEC = AlpacaEvalSpec(baseline="outputs.json", max_new_tokens=15)
INSTRUCTIONS = [Instruction("abcdefgh"[: 1 + i % 8] * (1 + i // 8), f"set {i % 2}") for i in range(11)]


def rows(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text()))


def test_the_file_is_the_official_one(tmp_path: Path) -> None:
    path, echo = tmp_path / "m" / "model_outputs.json", Echo()
    answer_alpaca_eval(INSTRUCTIONS, echo, SPEC, path, 5)
    written = rows(path)
    assert all(sorted(row) == ["dataset", "generator", "instruction", "output"] for row in written)
    assert [Instruction(row["instruction"], row["dataset"]) for row in written] == INSTRUCTIONS
    assert {row["generator"] for row in written} == {"echo"}
    assert all(row["output"].startswith(f"to {row['instruction']}: ") for row in written)
    assert instructions_of(read_outputs(path)) == INSTRUCTIONS
    assert {(each.temperature, each.max_new_tokens, each.top_p) for each in echo.asked} == {(0.7, 15, 1.0)}


def test_an_answer_depends_on_the_seed_and_the_instruction_alone(make: Any, tmp_path: Path) -> None:
    def written(name: str, instructions: list[Instruction], size: int, seed: int = 5) -> dict[str, str]:
        model = LocalAnswerer(make.model(4), make.tokenizer, name="m", batch_size=size)
        answer_alpaca_eval(instructions, model, SPEC, tmp_path / name, seed)
        return {row["instruction"]: row["output"] for row in rows(tmp_path / name)}

    whole = written("a", INSTRUCTIONS, 1)
    assert written("b", INSTRUCTIONS, 4) == whole
    some = written("c", INSTRUCTIONS[7:3:-1], 50)
    assert some == {each.instruction: whole[each.instruction] for each in INSTRUCTIONS[7:3:-1]}
    assert written("d", INSTRUCTIONS, 4, seed=6) != whole


@pytest.mark.parametrize("after", [0, 1, 6, 10])
def test_a_killed_run_goes_on_and_repeats_nothing(make: Any, tmp_path: Path, after: int) -> None:
    model = LocalAnswerer(make.model(4), make.tokenizer, name="m", batch_size=4)
    answer_alpaca_eval(INSTRUCTIONS, model, SPEC, tmp_path / "whole.json", 5)
    path, said = tmp_path / "model_outputs.json", []
    with pytest.raises(KeyboardInterrupt):
        answer_alpaca_eval(INSTRUCTIONS, Killed(model, after), SPEC, path, 5)
    assert not path.exists()
    answer_alpaca_eval(INSTRUCTIONS, Killed(model, len(INSTRUCTIONS) - after), SPEC, path, 5, said.append)
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert ("m: AlpacaEval, goes on after 6 of 11" in said) == (after == 6)
    before, echo = path.read_bytes(), Echo("m")
    answer_alpaca_eval(INSTRUCTIONS, echo, SPEC, path, 5)
    assert (path.read_bytes(), echo.asked) == (before, [])
