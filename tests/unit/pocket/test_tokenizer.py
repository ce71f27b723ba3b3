"""The pocket study's tokenizer: one id per character, and a template that marks the answer and its end."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from preceptor.pocket.tasks import make_rows
from preceptor.pocket.tokenizer import CHARACTERS, SPECIAL_TOKENS, build_tokenizer


def test_every_row_is_one_token_per_character_and_three_more() -> None:
    tokenizer = build_tokenizer()
    assert len(tokenizer) == len(SPECIAL_TOKENS) + len(CHARACTERS)
    for row in make_rows("train", 240, seed=0, noise=0.15):
        prompt, answer = (message["content"] for message in row["messages"])
        encoded = tokenizer.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True, tokenize=True
        )
        ids = encoded["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == len(prompt) + len(answer) + 3 <= 36 + 3
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == prompt + answer
        # The answer and its end are the targets, nothing else.
        assert encoded["assistant_masks"] == [0] * (len(prompt) + 2) + [1] * (len(answer) + 1)


def test_the_generation_prompt_is_the_row_up_to_the_answer() -> None:
    tokenizer = build_tokenizer()
    row = make_rows("train", 1, seed=0)[0]
    whole = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    opened = tokenizer.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True)
    assert whole == opened + row["messages"][1]["content"] + tokenizer.eos_token


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    messages = make_rows("train", 1, seed=0)[0]["messages"]
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.apply_chat_template(messages) == tokenizer.apply_chat_template(messages)
    assert loaded.decode(loaded("add 10 20")["input_ids"]) == "add 10 20"
