"""Rows in a JSON file."""

from __future__ import annotations

from pathlib import Path

from fuzz.reading import read
from fuzz.scaffold import Target
from preceptor.data.rows import Row


def check(data: bytes, folder: Path) -> list[Row]:
    file = folder / "rows.json"
    file.write_bytes(data)
    return read(file)


TARGET = Target(
    name="json",
    check=check,
    seeds=[
        b'[{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]',
        b'{"data": [{"text": "a"}, {"text": "b", "n": -1.5e3}]}',
        b'{"text": "a"}\n{"text": "b"}\n',
        b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}',
    ],
    words=[b'"data": ', b'"text": ', b"\\ud800", b"NaN", b"Infinity", b"1e999", b"{}", b"[[", b"}\n{"],
)
