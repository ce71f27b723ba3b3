"""Tiny tokenizers of the kinds in use, built here, and rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from preceptor.data.rows import Row
from toy_tokenizers import KINDS, wrapped


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
