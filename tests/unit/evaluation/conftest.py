"""A tokenizer of characters, a tiny model that knows it, and rows of every metric."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import toys
from preceptor.data.rows import Row
from preceptor.data.template import choose_template
from preceptor.evaluation.rows import EvaluationSet, question
from preceptor.models.tokenizers import train_tokenizer

TEXT = "User: Assistant:\n\nabcdefgh 0123"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    made = train_tokenizer([TEXT], vocab_size=100, kind="characters", announce=print)
    choose_template(made)
    return made


class Makers:
    """Models of one tokenizer, and rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def model(self, seed: int, dtype: torch.dtype = torch.float64, **changes: Any) -> PreTrainedModel:
        ids = {name: getattr(self.tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
        kind = toys.mistral if "sliding_window" in changes else toys.llama
        sizes = {"vocab_size": len(self.tokenizer), "hidden_size": 16, "intermediate_size": 24, **changes}
        return kind(seed, dtype, sharpness=2.0, **sizes, **ids).eval()

    @staticmethod
    def row(prompt: str, answer: str, dataset: str = "shop", origin: str = "rows.jsonl:1", **extra: Any) -> Row:
        messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
        return Row(dataset, messages, None, extra, origin)

    def choice_rows(self) -> list[Row]:
        """Prompts and choices of many lengths, with two, three and five choices."""
        rows = []
        for i in range(9):
            choices = ["ab", "c d efgh", "b", "hgfe 01", "c d"][: (2, 3, 5)[i % 3]]
            answer = choices[i % len(choices)]
            rows.append(self.row("abcdefgh "[: 1 + i], answer, metric="accuracy", choices=choices, task=f"t{i % 2}"))
        return rows

    @staticmethod
    def set(rows: list[Row], name: str = "shop", role: Any = "domain") -> EvaluationSet:
        return EvaluationSet(name, role, "test", tuple(question(row) for row in rows))


@pytest.fixture(scope="session")
def make(tokenizer: PreTrainedTokenizerBase) -> Makers:
    return Makers(tokenizer)
