"""What somebody new has in a folder: a teacher, a student and rows, made without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from preceptor.teachers.store_files import ShardWriter, write_manifest

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 :.,?!'-\n<|>_/=+*()ABCDEFGHSU"


def write_tokenizer(folder: Path, letters: str = LETTERS) -> None:
    """One token a letter."""
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))


def write_model(folder: Path, *, parameters: int = 1000, letters: str = LETTERS, **config: Any) -> Path:
    """A folder that looks like a model: config, weights of so many parameters, tokenizer."""
    folder.mkdir(parents=True)
    settings = {"model_type": "mistral", "max_position_embeddings": 256, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file({"weight": np.zeros(parameters, np.float16)}, str(folder / "model.safetensors"))
    write_tokenizer(folder, letters)
    return folder


def rows(numbers: Iterable[int], *, about: str = "", **columns: Any) -> list[dict[str, Any]]:
    """Conversations of one question and its answer, each of another prompt."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"{about}count to {number}"},
                {"role": "assistant", "content": str(number)},
            ],
            **columns,
        }
        for number in numbers
    ]


def write_rows(file: Path, records: Iterable[dict[str, Any]]) -> Path:
    """Records as JSONL."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def write_store(folder: Path) -> Path:
    """A store of one row with two target positions, in one shard."""
    identity = {
        "mode": "full",
        "draws": None,
        "k": None,
        "temperature": 1.0,
        "vocabulary": 4,
        "max_length": 8,
        "data": ["rows"],
        "teacher": {"model": "toy", "sha256": "aa"},
        "tokenizer": {"tokens": 4, "sha256": "bb"},
        "template": {"text": "", "sha256": "cc"},
    }
    writer = ShardWriter(folder, identity)
    writer.add(bytes(32), bytes(8), 2, np.full((2, 4), np.log(0.25), np.float16).tobytes())
    writer.flush()
    write_manifest(folder, identity, writer.written)
    return folder
