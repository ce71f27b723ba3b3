"""Exact match: only equal answers count, and answers come back in order."""

from __future__ import annotations

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from preceptor.evaluation.exact_match import ExactMatch, Question, exact_match, questions_of
from preceptor.pocket.tasks import make_rows
from preceptor.pocket.tokenizer import build_tokenizer


def tiny_model() -> MistralForCausalLM:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,  # large enough that greedy answers differ between prompts
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return MistralForCausalLM(config).eval()


def test_scores_count_equal_answers_per_task_and_average_over_tasks() -> None:
    questions = [
        Question([{"role": "user", "content": "q"}], answer, task)
        for answer, task in [("85", "add"), ("86", "add"), ("abc", "reverse")]
    ]
    found = ExactMatch(tuple(questions), ("85", "8", " abc"))
    assert found.correct == (True, False, True)
    assert found.by_task == {"add": 0.5, "reverse": 1.0}
    assert found.score == 0.75


def test_answers_come_back_in_the_order_of_the_questions_and_the_mode_is_kept() -> None:
    model, tokenizer = tiny_model(), build_tokenizer()
    model.train()
    rows = make_rows("test", 10, seed=2)
    small = exact_match(model, tokenizer, questions_of(rows), max_new_tokens=6, batch_size=3)
    whole = exact_match(model, tokenizer, questions_of(rows), max_new_tokens=6, batch_size=64)
    assert small.answers == whole.answers
    assert [question.answer for question in whole.questions] == [row["messages"][1]["content"] for row in rows]
    assert model.training
    # A model asked what it answers anyway scores 1: the comparison is with the decoded answer and nothing else.
    said = [Question(q.messages, a, q.task) for q, a in zip(whole.questions, whole.answers, strict=True)]
    assert exact_match(model, tokenizer, said, max_new_tokens=6).score == 1.0


def test_no_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="no questions were given"):
        exact_match(tiny_model(), build_tokenizer(), [])
