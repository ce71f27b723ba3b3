"""What a user is told about AlpacaEval files that cannot be used: before a model is loaded or a judge is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from judged import RANKING, TOKENS, FakeJudge, annotation_rows, as_json, output_rows
from preceptor.errors import InputError
from preceptor.evaluation.alpaca_eval.benchmark import evaluate_alpaca_eval, read_alpaca_eval_files
from preceptor.recipe.suites import AlpacaEvalSpec, EndpointSpec

OUTPUTS = 'give a model_outputs.json of AlpacaEval, a list of {"instruction", "output", "generator", "dataset"}'
ANNOTATIONS = (
    'give an annotations.json of AlpacaEval, a list of {"instruction", "output_1", "generator_1", "output_2", '
    '"generator_2", "preference"}'
)
PROMPT = "give an annotator's prompt of AlpacaEval, such as alpaca_eval.txt"
BASE = output_rows("b1", "b2")
TIES = annotation_rows(1, 2)


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


# which file, what is in it (None leaves it out, a text is written as it is), what is said (PATH stands for the file)
CASES: dict[str, tuple[str, Any, str]] = {
    "no baseline": ("baseline", None, f"at.baseline: PATH: does not exist; {OUTPUTS}"),
    "an empty list": ("baseline", [], f"at.baseline: PATH: has no rows; {OUTPUTS}"),
    "an object": (
        "baseline",
        {"rows": []},
        f"at.baseline: PATH: must hold a list of objects, not {{'rows': []}}; {OUTPUTS}",
    ),
    "broken JSON": (
        "baseline",
        '[{"instruction": "a"},\n {"instruc',
        f"at.baseline: PATH:2: not valid JSON: Unterminated string starting at at column 3; {OUTPUTS}",
    ),
    "a row that is no object": (
        "baseline",
        [BASE[0], "b"],
        f"at.baseline: PATH: row 2: must be an object, not 'b'; {OUTPUTS}",
    ),
    "a row without output": (
        "baseline",
        [BASE[0], without(BASE[1], "output")],
        f"at.baseline: PATH: row 2: has no `output` (it has `dataset`, `instruction`, `generator`); {OUTPUTS}",
    ),
    "an output that is no text": (
        "baseline",
        [{**BASE[0], "output": None}],
        f"at.baseline: PATH: row 1: `output` is None and must be a text; {OUTPUTS}",
    ),
    "an empty instruction": (
        "baseline",
        [{**BASE[0], "instruction": " "}],
        f"at.baseline: PATH: row 1: `instruction` is an empty text; {OUTPUTS}",
    ),
    "an instruction twice": (
        "baseline",
        [*BASE, BASE[0]],
        "at.baseline: PATH: row 3: the instruction 'do 1' is there a second time (first in row 1); keep one of the "
        f"two; {OUTPUTS}",
    ),
    "two models in one file": (
        "baseline",
        [BASE[0], {**BASE[1], "generator": "other"}],
        f"at.baseline: PATH: row 2: is of other and earlier rows of base; keep one model a file; {OUTPUTS}",
    ),
    "annotations as outputs": (
        "baseline",
        TIES,
        f"at.baseline: PATH: row 1: is an annotation, not a model's output; {OUTPUTS}",
    ),
    "other instructions": (
        "outputs.x",
        [{**row, "instruction": row["instruction"].replace("do 1", "do it")} for row in BASE],
        "at.outputs.x: PATH: answers other instructions than the baseline BASELINE: 1 of its 2 are missing and 1 are "
        "not among them (the first is 'do 1'); compare answers to the same instructions, letter for letter",
    ),
    "further instructions": (
        "outputs.x",
        output_rows("a", "b", "c"),
        "at.outputs.x: PATH: answers other instructions than the baseline BASELINE: 0 of its 2 are missing and 1 are "
        "not among them (the first is 'do 3'); compare answers to the same instructions, letter for letter",
    ),
    "an evaluated model's name": (
        "outputs.ours",
        BASE,
        "at.outputs.ours: is the name of another model too, or its file's name; give it another name, or leave one of "
        "the two out",
    ),
    "annotations of another baseline": (
        "annotations.x",
        annotation_rows(1, 2, baseline="davinci"),
        "at.annotations.x: PATH: compares with davinci (`generator_1`), and the baseline BASELINE is base; give "
        "annotations against the same baseline, or its model_outputs.json as `baseline`",
    ),
    "annotations the wrong way round": (
        "annotations.x",
        annotation_rows(1, 2, baseline="m", generator="base"),
        "at.annotations.x: PATH: compares with m (`generator_1`), and the baseline BASELINE is base; the two models "
        "are swapped: make `generator_1` and `output_1` the baseline's and turn each preference p into 3 - p",
    ),
    "annotations of other instructions": (
        "annotations.x",
        annotation_rows(1, 2, 1),
        "at.annotations.x: PATH: 1 of its 3 instructions are not in the baseline BASELINE (the first is 'do 3'); give "
        "annotations of the same instructions",
    ),
    "a preference off the scale": (
        "annotations.x",
        annotation_rows(1, 3),
        "at.annotations.x: PATH: row 2: `preference` is 3 and must be from 1 (the baseline's answer) to 2 (the "
        f"model's), 0 or 1.5 for a tie, or null; {ANNOTATIONS}",
    ),
    "a preference that is no number": (
        "annotations.x",
        [{**TIES[0], "preference": "model_2"}],
        "at.annotations.x: PATH: row 1: `preference` is 'model_2' and must be from 1 (the baseline's answer) to 2 (the "
        f"model's), 0 or 1.5 for a tie, or null; {ANNOTATIONS}",
    ),
    "outputs as annotations": (
        "annotations.x",
        BASE,
        "at.annotations.x: PATH: row 1: has no `output_1` (it has `dataset`, `instruction`, `output`, `generator`); "
        + ANNOTATIONS,
    ),
    "two models annotated in one file": (
        "annotations.x",
        [TIES[0], {**TIES[1], "generator_2": "n"}],
        "at.annotations.x: PATH: row 2: its `generator_2` is n and that of earlier rows m; keep one baseline, one "
        f"model and one annotator a file; {ANNOTATIONS}",
    ),
    "no prompt": ("prompt", None, f"at.prompt: PATH: does not exist; {PROMPT}"),
    "a prompt without a placeholder": (
        "prompt",
        RANKING.replace("{output_2}", ""),
        f"at.prompt: PATH: has no placeholder {{output_2}}, and each must be there once; {PROMPT}",
    ),
    "a prompt with a placeholder twice": (
        "prompt",
        RANKING.replace("{output_2}", "{output_1} {output_2}"),
        f"at.prompt: PATH: has 2 times the placeholder {{output_1}}, and each must be there once; {PROMPT}",
    ),
    "a prompt for tokens": (
        "prompt",
        TOKENS,
        "at.prompt: PATH: does not mention model_1 or model_2, and `preference: ranking` reads which of model_1 and "
        "model_2 the judge names; give a prompt that calls the two outputs so, or set `preference: logprobs`",
    ),
    "an open chat mark": (
        "prompt",
        RANKING.replace("<|im_end|>", "", 1),
        f"at.prompt: PATH: has text outside <|im_start|> … <|im_end|>, or a mark without the other; {PROMPT}",
    ),
    "text outside chat marks": (
        "prompt",
        "Hello\n" + RANKING,
        f"at.prompt: PATH: has text outside <|im_start|> … <|im_end|>, or a mark without the other; {PROMPT}",
    ),
    "an unknown speaker": (
        "prompt",
        RANKING.replace("|>system", "|>judge"),
        "at.prompt: PATH: has a message of 'judge'; accepted are system, user or assistant",
    ),
    "a prompt that ends with the assistant": (
        "prompt",
        RANKING + "<|im_start|>assistant\n[\n<|im_end|>",
        "at.prompt: PATH: ends with a message of the assistant; end it with the user's",
    ),
}


def given(folder: Path, kind: str, content: Any) -> tuple[AlpacaEvalSpec, Path]:
    files = {"baseline": as_json(folder / "base.json", BASE), "prompt": folder / "alpaca_eval.txt"}
    files["prompt"].write_text(RANKING)
    name, _, key = kind.partition(".")
    path = files.get(kind, folder / "given.json")
    path.unlink(missing_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        as_json(path, content)
    spec = AlpacaEvalSpec(
        baseline=str(files["baseline"]),
        prompt=str(files["prompt"]),
        judge=EndpointSpec(endpoint="http://127.0.0.1:1/v1", model="judge"),
        outputs={key: str(path)} if name == "outputs" else {},
        annotations={key: str(path)} if name == "annotations" else {},
    )
    return spec, path


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_cannot_be_used(tmp_path: Path, case: str) -> None:
    kind, content, said = CASES[case]
    spec, path = given(tmp_path, kind, content)
    with pytest.raises(InputError) as caught:
        read_alpaca_eval_files(spec, ["ours"], where="at.")
    assert str(caught.value).replace(str(path), "PATH").replace(spec.baseline, "BASELINE") == said


def test_a_prompt_for_a_ranking_where_tokens_are_read(tmp_path: Path) -> None:
    spec, path = given(tmp_path, "prompt", RANKING)
    with pytest.raises(InputError) as caught:
        read_alpaca_eval_files(spec.model_copy(update={"preference": "logprobs"}), [])
    assert str(caught.value) == (
        f"prompt: {path}: does not mention m or M, and `preference: logprobs` reads which of m and M the judge names; "
        "give a prompt that calls the two outputs so, or set `preference: ranking`"
    )


def test_answers_of_our_own_to_other_instructions(tmp_path: Path) -> None:
    spec, _ = given(tmp_path, "baseline", BASE)
    files = read_alpaca_eval_files(spec, ["m"])
    answered = {"m": as_json(tmp_path / "m.json", output_rows("one", generator="m"))}
    judge = FakeJudge(lambda request: "")
    with pytest.raises(InputError) as caught:
        evaluate_alpaca_eval(spec, files, answered, tmp_path / "out", judge=judge)
    assert str(caught.value) == (
        f"m: answers other instructions than the baseline {spec.baseline}: 1 of its 2 are missing and 0 are not among "
        "them (the first is 'do 2'); compare answers to the same instructions, letter for letter"
    )
    assert judge.asked == []


def test_names_that_give_one_folder(tmp_path: Path) -> None:
    spec, path = given(tmp_path, "outputs.a/b", BASE)
    with pytest.raises(InputError) as caught:
        read_alpaca_eval_files(spec, ["a_b"])
    assert str(caught.value) == (
        "outputs.a/b: is the name of another model too, or its file's name; give it another name, or leave one of the "
        "two out"
    )
    assert path.exists()
