"""The judge's prompt templates: which one grades a turn, and filling it in.

The templates are the user's official judge_prompts.jsonl. Single-answer grading takes four of its eight: of one turn or
two, with reference answers (math, reasoning, coding) or without.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from preceptor.errors import InputError, accepted, did_you_mean, shown
from preceptor.evaluation.json_files import Row, read_jsonl
from preceptor.evaluation.mt_bench.files import REFERENCE_CATEGORIES, Question

if TYPE_CHECKING:
    from preceptor.data.template import Message

_PROMPTS = (
    'give the official judge_prompts.jsonl, rows of {"name", "type", "system_prompt", "prompt_template", '
    '"output_format"}'
)
_PLACEHOLDERS = {
    "single-v1": ("question", "answer"),
    "single-math-v1": ("question", "ref_answer_1", "answer"),
    "single-v1-multi-turn": ("question_1", "answer_1", "question_2", "answer_2"),
    "single-math-v1-multi-turn": ("ref_answer_1", "ref_answer_2", "question_1", "answer_1", "question_2", "answer_2"),
}
_OPTIONAL = {"single-math-v1": ("ref_answer_2",)}  # the official script offers both references to both templates


@dataclass(frozen=True)
class Prompt:
    """A judge's instructions, and the text around the conversation with `{placeholders}`."""

    name: str
    system: str
    template: str

    def messages(self, values: Mapping[str, str]) -> tuple[Message, ...]:
        """The chat the judge is sent; braces in the values stay as they are."""
        text = self.template.format_map(values)
        return {"role": "system", "content": self.system}, {"role": "user", "content": text}


def template_name(question: Question, turn: int) -> str:
    """The template that grades this turn (1 or 2) of the question."""
    name = "single-math-v1" if question.category in REFERENCE_CATEGORIES else "single-v1"
    return name if turn == 1 else f"{name}-multi-turn"


def fill_values(
    question: Question, answers: Sequence[str], references: Sequence[str] | None, turn: int
) -> dict[str, str]:
    """What the template of this turn is filled with."""
    values = {f"ref_answer_{number}": text for number, text in enumerate(references or (), 1)}
    if turn == 1:
        # A question of one turn has no second reference, and a template that asks for it takes nothing from it.
        return {"ref_answer_2": "", **values, "question": question.turns[0], "answer": answers[0]}
    for number in (1, 2):
        values |= {f"question_{number}": question.turns[number - 1], f"answer_{number}": answers[number - 1]}
    return values


def read_prompts(path: str | Path, questions: Sequence[Question], *, where: str = "") -> dict[str, Prompt]:
    """Reads the templates these questions need from judge_prompts.jsonl, by name.

    Raises:
        InputError: a broken line, a template that is missing, is not for single answers, or whose placeholders are not
            those of the official one.
    """
    path = Path(path)
    rows: dict[str, Row] = {}
    for row in read_jsonl(path, _PROMPTS, where=where):
        name = row.text("name", empty=False)
        if name in rows:
            row.refuse(f"the prompt {name} is there a second time; keep one of the two")
        rows[name] = row
    found = {}
    for name in dict.fromkeys(
        template_name(each, turn) for each in questions for turn in range(1, len(each.turns) + 1)
    ):
        if name not in rows:
            raise InputError(f"{where}{path}: has no prompt {name!r}{did_you_mean(name, rows)}; {_PROMPTS}")
        found[name] = _prompt(rows[name], name)
    return found


def _prompt(row: Row, name: str) -> Prompt:
    template = row.text("prompt_template", empty=False)
    form = row.fields.get("output_format")
    if form not in (None, "[[rating]]"):
        row.refuse(f"the prompt {name} has the output format {shown(form)} and must be for a [[rating]]")
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        row.refuse(f"the prompt {name} cannot be filled in ({error}); write a brace that is no placeholder twice")
    needed = _PLACEHOLDERS[name]
    _check(row, name, fields, needed, (*needed, *_OPTIONAL.get(name, ())))
    return Prompt(name, row.text("system_prompt"), template)


def _check(row: Row, name: str, fields: Iterable[str], needed: Sequence[str], allowed: Sequence[str]) -> None:
    given = list(fields)
    for placeholder in needed:
        if placeholder not in given:
            row.refuse(f"the prompt {name} has no placeholder {{{placeholder}}}, so that the judge would not see it")
    for field in given:
        if field not in allowed:
            names = accepted(f"{{{each}}}" for each in allowed)
            row.refuse(f"the prompt {name} has the placeholder {{{field}}}; accepted are {names}")
