"""Written answers and their scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from preceptor.evaluation.answers import exact, greedy_answers, rouge_l


@torch.no_grad()
def alone(model: Any, tokenizer: Any, prompt: list[int], new: int) -> str:
    ids = list(prompt)
    for _ in range(new):
        following = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if following == tokenizer.eos_token_id:
            break
        ids.append(following)
    return str(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True))


def prompts(make: Any) -> list[list[int]]:
    return [make.tokenizer(f"<s>User: {'ab 01'[: 1 + i % 5] * (1 + i)}")["input_ids"] for i in range(7)]


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_answers_are_those_of_one_prompt_at_a_time(make: Any, batch_size: int) -> None:
    model, asked, counted = make.model(4), prompts(make), []
    expected = [alone(model, make.tokenizer, prompt, 9) for prompt in asked]
    assert len(set(expected)) > 3
    found = greedy_answers(
        model, make.tokenizer, asked, max_new_tokens=9, batch_size=batch_size, advance=counted.append
    )
    assert found == expected
    assert sum(counted) == 7


def test_an_answer_stays_within_the_context(make: Any) -> None:
    model, asked = make.model(4), prompts(make)
    longest = max(map(len, asked))
    expected = [alone(model, make.tokenizer, prompt, min(9, longest + 2 - len(prompt))) for prompt in asked]
    found = greedy_answers(model, make.tokenizer, asked, max_new_tokens=9, batch_size=3, context=longest + 2)
    assert found == expected
    assert found != [alone(model, make.tokenizer, prompt, 9) for prompt in asked]


def test_the_models_own_end_tokens_end_an_answer_too(make: Any) -> None:
    model, asked = make.model(4), prompts(make)
    whole = greedy_answers(model, make.tokenizer, asked, max_new_tokens=9, batch_size=9)
    letter = next(text for text in whole if len(text) > 1)[1]
    ends = [make.tokenizer.eos_token_id, make.tokenizer.convert_tokens_to_ids(letter)]
    model.generation_config.eos_token_id = ends
    found = greedy_answers(model, make.tokenizer, asked, max_new_tokens=9, batch_size=9)
    assert found == [text.split(letter)[0] for text in whole]


def test_exact_ignores_surrounding_whitespace_alone() -> None:
    assert [exact(a, "42") for a in ("42", " 42\n", "4 2", "42.", "")] == [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat", "the cat sat", 0.8),  # precision 1, recall 2/3
        ("sat the cat", "the cat sat", 2 / 3),  # a common subsequence of two words
        ("Running, CATS!", "running cats", 1.0),
        ("runs", "running", 0.0),  # no stemming
        ("", "the cat", 0.0),
        ("日本", "日本", 0.0),  # no words the package knows
    ],
)
def test_rouge_is_the_packages_f_measure(answer: str, expected: str, score: float) -> None:
    assert rouge_l(answer, expected) == pytest.approx(score)
    library = RougeScorer(["rougeL"], use_stemmer=False).score(expected, answer)["rougeL"].fmeasure
    assert rouge_l(answer, expected) == library
