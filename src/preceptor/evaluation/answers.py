"""What a model writes to a prompt, and how near that is to the answer expected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preceptor.errors import InputError
from preceptor.evaluation.measure import by_length
from preceptor.models.sampling import sample


def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    context: int | None = None,
    advance: Callable[[int], None] = lambda prompts: None,
) -> list[str]:
    """The most likely next token again and again, as text without special tokens, for each prompt in order.

    An answer ends at the end token of the tokenizer or of the model's generation config, after `max_new_tokens`, or
    where prompt and answer fill `context` tokens. The model is in evaluation mode.

    Raises:
        InputError: a model with a recurrent state.
        RuntimeError: logits that are not numbers.
    """
    stop = _stop_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    answers = [""] * len(prompts)
    for chosen in by_length([len(prompt) for prompt in prompts], batch_size):
        room = [max_new_tokens if context is None else min(max_new_tokens, context - len(prompts[i])) for i in chosen]
        # At temperature 0 the numbers are not looked at; how many there are is how long an answer may get.
        unused = [torch.zeros(max(tokens, 1), dtype=torch.float64) for tokens in room]
        found = sample(model, [prompts[i] for i in chosen], unused, stop=stop, temperature=0.0, pad_token_id=pad)
        for i, written in zip(chosen, found, strict=True):
            answers[i] = str(
                tokenizer.decode(written.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            )
        advance(len(chosen))
    return answers


def _stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured = None if model.generation_config is None else model.generation_config.eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return {token for token in (*several, tokenizer.eos_token_id) if token is not None}


def exact(answer: str, expected: str) -> float:
    """1 where both are equal but for whitespace around them."""
    return float(answer.strip() == expected.strip())


def rouge_l(answer: str, expected: str) -> float:
    """ROUGE-L F-measure from 0 to 1, by the package `rouge-score` without stemming (Lin 2004, W04-1013).

    It compares lower-cased words of a to z and 0 to 9; texts in other scripts have none and score 0.

    Raises:
        InputError: the package is not installed.
    """
    return float(_rouge().score(expected, answer)["rougeL"].fmeasure)


@cache
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError(
            "metric rougeL: needs the package rouge-score, which is not installed; run `pip install rouge-score`"
        ) from error
    return RougeScorer(["rougeL"], use_stemmer=False)
