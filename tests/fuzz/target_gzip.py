"""Rows in a compressed JSONL file."""

from __future__ import annotations

import gzip
from pathlib import Path

from fuzz.reading import read
from fuzz.scaffold import Target
from preceptor.data.rows import Row


def check(data: bytes, folder: Path) -> list[Row]:
    file = folder / "rows.jsonl.gz"
    file.write_bytes(data)
    return read(file)


TARGET = Target(
    name="gzip",
    check=check,
    seeds=[
        gzip.compress(b'{"text": "a"}\n{"text": "b"}\n', mtime=0),
        gzip.compress(b'{"text": "a"}\n', mtime=0) * 2,
        gzip.compress(b'{"text": "' + b"a" * 1000 + b'"}\n', 0, mtime=0),
    ],
    words=[b"\x1f\x8b\x08", b"\x00\x00\xff\xff"],
)
