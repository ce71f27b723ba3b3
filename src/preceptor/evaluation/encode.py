"""Evaluated rows as tokens: what each measure of a row needs, or why the row cannot be measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from preceptor.data.chat import Dropped, EncodedRow, encode_rows
from preceptor.data.rows import Row
from preceptor.data.template import ChatTemplate, choose_template
from preceptor.evaluation.rows import EvaluationSet, Question


@dataclass(frozen=True)
class EncodedQuestion:
    """A question as tokens.

    Attributes:
        answered: the row with its own answer, whose targets perplexity and KL are taken over.
        choices: for accuracy, the row with each choice in place of the answer. The targets are the choice's own tokens,
            without the end-of-sequence token.
        prompt: for metrics that read what a model writes, the prompt up to where the assistant begins.
    """

    answered: EncodedRow
    choices: tuple[EncodedRow, ...] = ()
    prompt: tuple[int, ...] | None = None


def encode_questions(
    data: EvaluationSet, tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> list[EncodedQuestion | Dropped]:
    """One result for each question, in order.

    The tokenizer gets the default chat template where it has none. An answer beyond `max_length` tokens is cut, as in
    training; a choice beyond it cannot be compared with the others, so its row is dropped.

    Raises:
        InputError: as `preceptor.data.chat.encode_rows`.
    """
    choose_template(tokenizer)
    limit = min(max_length, data.max_length or max_length)
    questions = data.questions
    answered = encode_rows([each.row for each in questions], tokenizer, max_length=limit, targets=data.targets)
    chosen = encode_rows([row for each in questions for row in _with_choices(each)], tokenizer, max_length=limit)
    template = ChatTemplate(tokenizer) if any(each.prompt_messages for each in questions) else None
    return [_encoded(each, next(answered), chosen, tokenizer, template, limit) for each in questions]


def _encoded(
    question: Question,
    answered: EncodedRow | Dropped,
    chosen: Iterator[EncodedRow | Dropped],
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate | None,
    limit: int,
) -> EncodedQuestion | Dropped:
    choices = [next(chosen) for _ in question.choices]
    if isinstance(answered, Dropped):
        return answered
    kept: list[EncodedRow] = []
    for choice in choices:
        if isinstance(choice, Dropped):
            return choice
        if "truncated" in choice.notes:
            return Dropped(f"a choice does not fit within {limit} tokens")
        unended = _unended(choice, tokenizer)
        if not unended.target_count:
            return Dropped("a choice has no token of its own")
        kept.append(unended)
    prompt = None
    if question.metric is not None and not question.choices:
        assert template is not None
        try:
            text = template.render(question.prompt_messages, add_generation_prompt=True)
        except TemplateError as error:
            return Dropped(f"the chat template refuses it: {error}")
        prompt = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not 0 < len(prompt) < limit:
            return Dropped(f"the prompt leaves no room to answer within {limit} tokens")
    return EncodedQuestion(answered, tuple(kept), prompt)


def _with_choices(question: Question) -> list[Row]:
    return [
        replace(question.row, messages=(*question.prompt_messages, {"role": "assistant", "content": choice}))
        for choice in question.choices
    ]


def _unended(row: EncodedRow, tokenizer: PreTrainedTokenizerBase) -> EncodedRow:
    """The row with the targets of its last turn alone, the end token that closes it left out."""
    length = len(row)
    if row.input_ids[-1] == tokenizer.eos_token_id:
        length -= 1
    is_target = row.is_target[:length].copy()
    # Earlier assistant turns are targets of a whole row; a choice is the last run of them.
    gaps = np.flatnonzero(~is_target)
    if is_target[-1:].any():
        is_target[: gaps[-1] if len(gaps) else 0] = False
    return replace(row, input_ids=row.input_ids[:length], is_target=is_target)
