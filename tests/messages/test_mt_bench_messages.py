"""What a user is told about MT-Bench files that cannot be used: before a model is loaded or a judge is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from judged import answer_rows, jsonl, judgment_row, prompt_rows, question_rows
from preceptor.errors import InputError
from preceptor.evaluation.mt_bench.benchmark import read_mt_bench_files
from preceptor.evaluation.mt_bench.files import read_answers, read_questions
from preceptor.recipe.suites import EndpointSpec, MtBenchSpec

QUESTIONS = 'give the official question.jsonl, rows of {"question_id", "category", "turns"}'
ANSWERS = (
    'give an official model_answer file, rows of {"question_id", "answer_id", "model_id", "choices": [{"index": 0, '
    '"turns": [...]}], "tstamp"}'
)
REFERENCES = (
    'give the official reference answers (reference_answer/gpt-4.jsonl), rows of {"question_id", "choices": '
    '[{"index": 0, "turns": [...]}]}'
)
PROMPTS = (
    'give the official judge_prompts.jsonl, rows of {"name", "type", "system_prompt", "prompt_template", '
    '"output_format"}'
)
JUDGMENTS = (
    'give an official model_judgment file of single answer grading, rows of {"question_id", "model", "judge", '
    '"user_prompt", "judgment", "score", "turn", "tstamp"}'
)


def changed(rows: list[dict[str, Any]], place: int, **changes: Any) -> list[Any]:
    """`rows` with changes in one; a key that becomes None is left out."""
    row = {key: value for key, value in {**rows[place], **changes}.items() if value is not None}
    return [*rows[:place], row, *rows[place + 1 :]]


TWO = question_rows("writing", "math")
FINE = answer_rows(81, 82)
GRADED = [judgment_row(81, 1, 7), judgment_row(81, 2, 7)]

# which file, its rows (None leaves it out), what is said (PATH stands for the file)
CASES: dict[str, tuple[str, list[Any] | None, str]] = {
    "no question file": ("questions", None, f"at.questions: PATH: does not exist; {QUESTIONS}"),
    "an empty question file": ("questions", [""], f"at.questions: PATH: has no rows; {QUESTIONS}"),
    "answers as questions": (
        "questions",
        FINE,
        "at.questions: PATH:1: has no `turns` (it has `question_id`, `answer_id`, `model_id`, `choices`, `tstamp`); "
        + QUESTIONS,
    ),
    "a question without an id": (
        "questions",
        changed(TWO, 1, question_id=None),
        f"at.questions: PATH:2: has no `question_id` (it has `category`, `turns`); {QUESTIONS}",
    ),
    "a question with a broken id": (
        "questions",
        changed(TWO, 0, question_id=[81]),
        f"at.questions: PATH:1: `question_id` is [81] and must be a whole number or a text; {QUESTIONS}",
    ),
    "a question twice": (
        "questions",
        [TWO[0], "", TWO[1], TWO[0]],
        f"at.questions: PATH:4: question 81 is there a second time (first in line 1); keep one of the two; {QUESTIONS}",
    ),
    "three turns": (
        "questions",
        changed(TWO, 0, turns=["a", "b", "c"]),
        f"at.questions: PATH:1: question 81 has 3 turns, and MT-Bench grades one or two; {QUESTIONS}",
    ),
    "a turn that is no text": (
        "questions",
        changed(TWO, 0, turns=["a", 3]),
        f"at.questions: PATH:1: `turns` is ['a', 3] and must be a list of texts, one per turn; {QUESTIONS}",
    ),
    "an empty turn": (
        "questions",
        changed(TWO, 0, turns=["a", " "]),
        f"at.questions: PATH:1: `turns` is ['a', ' '] and has an empty text; {QUESTIONS}",
    ),
    "no category": (
        "questions",
        changed(TWO, 0, category=""),
        f"at.questions: PATH:1: `category` is an empty text; {QUESTIONS}",
    ),
    "a line cut off": (
        "questions",
        [TWO[0], '{"question_id": 82, "tur'],
        "at.questions: PATH:2: not valid JSON: Unterminated string starting at at column 21; JSONL has one object per "
        "line, and the line may have been cut off while the file was written",
    ),
    "a line that is no object": (
        "questions",
        [TWO[0], "[1, 2]"],
        f"at.questions: PATH:2: must be an object, not [1, 2]; {QUESTIONS}",
    ),
    "references missing": (
        "references",
        answer_rows(81),
        f"at.references: PATH: has no reference answer for 1 of 1 questions (82); {REFERENCES}, of the same questions",
    ),
    "a reference for one turn": (
        "references",
        answer_rows(82, turns=1),
        "at.references: PATH: has no reference answer for the second turn of 1 of 1 questions (82); " + REFERENCES,
    ),
    "answers missing": (
        "answers.x",
        answer_rows(82, 90, 91),
        f"at.answers.x: PATH: has no answer to 1 of 2 questions (81); {ANSWERS}, of the same questions",
    ),
    "answers of one turn": (
        "answers.x",
        [*answer_rows(81), *answer_rows(82, turns=1)],
        f"at.answers.x: PATH: has no answer to the second turn of 1 of 2 questions (82); {ANSWERS}",
    ),
    "an answer twice": (
        "answers.x",
        answer_rows(81, 82, 81),
        "at.answers.x: PATH:3: the answer to question 81 is there a second time (first in line 1); keep one of the "
        f"two; {ANSWERS}",
    ),
    "answers of the Vicuna blog": (
        "answers.x",
        [{"question_id": 81, "text": "hello"}],
        f"at.answers.x: PATH:1: has no `choices` (it has `question_id`, `text`); {ANSWERS}",
    ),
    "no choice": (
        "answers.x",
        changed(FINE, 1, choices=[]),
        f"at.answers.x: PATH:2: `choices` is [] and must be a list of objects; {ANSWERS}",
    ),
    "no prompt of a template": (
        "prompts",
        [row for row in prompt_rows() if row["name"] != "single-math-v1"],
        f"at.prompts: PATH: has no prompt 'single-math-v1' (did you mean 'single-v1'?); {PROMPTS}",
    ),
    "a prompt without a placeholder": (
        "prompts",
        changed(prompt_rows(), 0, prompt_template="[{question}]"),
        "at.prompts: PATH:1: the prompt single-v1 has no placeholder {answer}, so that the judge would not see it; "
        + PROMPTS,
    ),
    "a prompt with another placeholder": (
        "prompts",
        changed(prompt_rows(), 0, prompt_template="{question} {answer} {score}"),
        "at.prompts: PATH:1: the prompt single-v1 has the placeholder {score}; accepted are {question} or {answer}; "
        + PROMPTS,
    ),
    "a prompt with a lone brace": (
        "prompts",
        changed(prompt_rows(), 0, prompt_template="{question} {answer} }"),
        "at.prompts: PATH:1: the prompt single-v1 cannot be filled in (Single '}' encountered in format string); write "
        f"a brace that is no placeholder twice; {PROMPTS}",
    ),
    "a pairwise prompt by that name": (
        "prompts",
        changed(prompt_rows(), 0, output_format="[[A]]"),
        "at.prompts: PATH:1: the prompt single-v1 has the output format '[[A]]' and must be for a [[rating]]; "
        + PROMPTS,
    ),
    "a score of another scale": (
        "judgments.0",
        changed(GRADED, 1, score=85),
        "at.judgments.0: PATH:2: `score` is 85 and must be from 1 to 10, or -1 where the judge gave none; " + JUDGMENTS,
    ),
    "a score that is no number": (
        "judgments.0",
        changed(GRADED, 1, score="7"),
        "at.judgments.0: PATH:2: `score` is '7' and must be a number from 1 to 10, or -1 where the judge gave none; "
        + JUDGMENTS,
    ),
    "a pairwise judgment": (
        "judgments.0",
        [{"question_id": 81, "model_1": "a", "model_2": "b", "g1_winner": "tie"}],
        f"at.judgments.0: PATH:1: is a pairwise judgment; {JUDGMENTS}",
    ),
    "a turn graded twice": (
        "judgments.0",
        [*GRADED, judgment_row(81, 2, 3)],
        "at.judgments.0: PATH:3: m, question 81, turn 2 is there a second time (first in line 2); keep one of the two; "
        + JUDGMENTS,
    ),
    "a turn that there is not": (
        "judgments.0",
        changed(GRADED, 0, turn=3),
        f"at.judgments.0: PATH:1: `turn` is 3 and must be 1 or 2; {JUDGMENTS}",
    ),
    "a judge without a template": (
        "judgments.0",
        changed(GRADED, 0, judge="gpt-4"),
        f"at.judgments.0: PATH:1: `judge` is 'gpt-4' and must be [judge, template]; {JUDGMENTS}",
    ),
    "two judges in one file": (
        "judgments.0",
        changed(GRADED, 1, judge=["claude", "single-v1"]),
        "at.judgments.0: PATH:2: was judged by claude and earlier rows by gpt-4; keep one judge a file; " + JUDGMENTS,
    ),
    "judgments of other questions": (
        "judgments.0",
        [judgment_row(1, 1, 7)],
        "at.judgments.0: PATH: none of the 1 judgments of m is of a question in QUESTIONS; give judgments of the same "
        "questions",
    ),
    "judgments of an evaluated model": (
        "judgments.0",
        [judgment_row(81, 1, 7, model="ours")],
        "at.judgments.0: PATH: has judgments of ours, which is there already; give it another name, or leave one of "
        "the two out",
    ),
    "answers under an evaluated model's name": (
        "answers.ours",
        FINE,
        "at.answers.ours: is also the name of an evaluated model; give it another name, or leave one of the two out",
    ),
}


def refusal(folder: Path, kind: str, rows: list[Any] | None) -> str:
    paths = {"questions": TWO, "references": answer_rows(82), "prompts": prompt_rows()}
    files = {name: jsonl(folder / f"{name}.jsonl", content) for name, content in paths.items()}
    name, _, key = kind.partition(".")
    path = files.get(kind, folder / "given.jsonl")
    path.unlink(missing_ok=True)
    if rows is not None:
        jsonl(path, rows)
    spec = MtBenchSpec(
        **{each: str(file) for each, file in files.items()},  # type: ignore[arg-type]
        judge=EndpointSpec(endpoint="http://127.0.0.1:1/v1", model="judge"),
        answers={key: str(path)} if name == "answers" else {},
        judgments=[str(path)] if name == "judgments" else [],
    )
    before = sorted(folder.iterdir())
    with pytest.raises(InputError) as caught:
        read_mt_bench_files(spec, ["ours"], where="at.")
    assert sorted(folder.iterdir()) == before
    return str(caught.value).replace(str(path), "PATH").replace(str(files["questions"]), "QUESTIONS")


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_cannot_be_used(tmp_path: Path, case: str) -> None:
    kind, rows, said = CASES[case]
    assert refusal(tmp_path, kind, rows) == said


def test_many_answers_missing_are_counted_and_the_first_named(tmp_path: Path) -> None:
    questions = read_questions(jsonl(tmp_path / "q.jsonl", question_rows(*["writing"] * 9)))
    with pytest.raises(InputError) as caught:
        read_answers(jsonl(tmp_path / "a.jsonl", answer_rows(82, 90)), questions)
    assert str(caught.value) == (
        f"{tmp_path}/a.jsonl: has no answer to 8 of 9 questions (81, 83, 84, 85, 86, …); {ANSWERS}, of the same "
        "questions"
    )


def test_references_that_are_not_given(tmp_path: Path) -> None:
    spec = MtBenchSpec(
        questions=str(jsonl(tmp_path / "q.jsonl", question_rows("writing", "math", "coding", "math"))),
        prompts=str(jsonl(tmp_path / "p.jsonl", prompt_rows())),
        judge=EndpointSpec(endpoint="http://127.0.0.1:1/v1", model="judge"),
    )
    with pytest.raises(InputError) as caught:
        read_mt_bench_files(spec, [], where="stages.scores.mt_bench.")
    assert str(caught.value) == (
        "stages.scores.mt_bench.references: is missing, and 3 of 4 questions are of math or coding, which are graded "
        "against reference answers; give the path of the official reference_answer/gpt-4.jsonl"
    )


def test_a_file_that_is_no_text_or_no_file(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError) as caught:
        read_questions(tmp_path / "q.jsonl")
    assert str(caught.value) == f"{tmp_path}/q.jsonl: is not UTF-8 text; {QUESTIONS}"
    with pytest.raises(InputError) as caught:
        read_questions(tmp_path)
    assert str(caught.value) == f"{tmp_path}: cannot be read (Is a directory); {QUESTIONS}"
