"""Tokenizers: padding without new tokens, training that round-trips, sameness by content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from preceptor.errors import InputError
from preceptor.models.tokenizers import check_tokenizer_fits, load_tokenizer, same_tokenizer, train_tokenizer
from preceptor.recipe import ModelSpec

TEXTS = ["Hello there.\n\nHello  again, café!", "The end — or not? 123"]


def trained(kind: Any, size: int = 300, announce: Any = print, texts: list[str] = TEXTS) -> Any:
    return train_tokenizer(texts, vocab_size=size, kind=kind, announce=announce)


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_round_trip_with_a_begin_token(kind: str) -> None:
    tokenizer = trained(kind)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert ids[1:] == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_bpe_spells_what_it_never_saw() -> None:
    tokenizer = trained("bpe")
    text = "日本語 🙂 zq\t"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_training_twice_gives_the_same(tmp_path: Path) -> None:
    for kind in ("bpe", "characters"):
        first, second = trained(kind), trained(kind)
        assert first.get_vocab() == second.get_vocab()
        same_tokenizer(first, second)
        first.save_pretrained(tmp_path / kind)
        same_tokenizer(first, load_tokenizer(ModelSpec(path=str(tmp_path / kind))))


def test_rare_characters_are_counted() -> None:
    said: list[str] = []
    tokenizer = trained("characters", size=6, announce=said.append, texts=["aaaabbbc"])
    assert said == ["tokenizer: 1 rare characters have no place in 6 tokens and become <unk> (12.50% of the text)"]
    assert tokenizer("abc", add_special_tokens=False)["input_ids"] == [4, 5, tokenizer.unk_token_id]


def test_padding_falls_back_to_the_end_token_and_is_announced(tmp_path: Path) -> None:
    tokenizer = trained("characters")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    said: list[str] = []
    loaded = load_tokenizer(ModelSpec(path=str(tmp_path)), announce=said.append)
    assert loaded.pad_token == loaded.eos_token == "</s>"
    assert len(loaded) == len(tokenizer)
    assert said == [
        f"tokenizer of {str(tmp_path)!r}: has no padding token; '</s>' is used for padding, which is masked"
    ]


def test_templates_and_roles_may_differ() -> None:
    first, second = trained("bpe"), trained("bpe")
    second.chat_template = "{{ messages }}"
    second.eos_token = "<pad>"
    same_tokenizer(first, second)


def test_one_more_token_is_a_difference() -> None:
    first, second = trained("bpe"), trained("bpe")
    second.add_tokens(["<tool>"])
    with pytest.raises(InputError, match="token 293 is absent for the student and '<tool>' for the teacher"):
        same_tokenizer(first, second)


def test_an_embedding_may_be_longer_than_the_tokenizer_but_not_shorter() -> None:
    tokenizer = trained("bpe")

    def model(rows: int) -> LlamaForCausalLM:
        torch.manual_seed(0)
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        return LlamaForCausalLM(LlamaConfig(vocab_size=rows, **sizes))

    check_tokenizer_fits(tokenizer, model(320))
    check_tokenizer_fits(tokenizer, model(len(tokenizer)))
    with pytest.raises(InputError, match="its embedding has 292 rows but its tokenizer has ids up to 292"):
        check_tokenizer_fits(tokenizer, model(292))
