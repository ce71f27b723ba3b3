"""Tiny tokenizers of the kinds in use, built here, and rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from preceptor.data.rows import Row

CORPUS = [
    "User: hello there, how are you today?\n\nAssistant: I am well, thank you.",
    "System: be brief.\n\nWhat is two and two? It is four. naïve café 日本",
    " yes  no\nmaybe\t[INST] 1 2 3",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Trimmed offsets leave the space before a word out of it, and make whitespace tokens empty.
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentence_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # As sentencepiece does, no token holds the end of one word and the beginning of the next.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=SPECIAL + bytes_, limit_alphabet=40)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def characters() -> Tokenizer:
    letters = sorted(set("".join(CORPUS)) | {chr(i) for i in range(32, 127)})
    vocabulary = {token: i for i, token in enumerate(SPECIAL + letters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


KINDS = {"byte-level": byte_level, "sentencepiece": sentence_piece, "characters": characters}


def wrapped(tokenizer: Tokenizer, template: str | None = None) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.chat_template = template
    return fast


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    def make(kind: str = "byte-level", template: str | None = None) -> PreTrainedTokenizerFast:
        return wrapped(KINDS[kind](), template)

    return make


@pytest.fixture(scope="session")
def chat() -> Callable[..., Row]:
    """Makes a row from "s: be brief", "u: hello", "a: hi"."""

    def make(*turns: str, dataset: str = "talk", **extra: Any) -> Row:
        roles = {"s": "system", "u": "user", "a": "assistant"}
        messages = tuple({"role": roles[t[0]], "content": t[2:]} for t in turns)
        return Row(dataset, messages, None, extra, "talk.jsonl:1")

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    """Writes a file and gives its path as text."""

    def make(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return make
