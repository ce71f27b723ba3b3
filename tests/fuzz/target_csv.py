"""Rows in a CSV file."""

from __future__ import annotations

from pathlib import Path

from fuzz.reading import read
from fuzz.scaffold import Target
from preceptor.data.rows import Row


def check(data: bytes, folder: Path) -> list[Row]:
    file = folder / "rows.csv"
    file.write_bytes(data)
    return read(file)


TARGET = Target(
    name="csv",
    check=check,
    seeds=[
        b'prompt,completion,n\na,b,1\n"c, ""c""","d\ne",2\n',
        b'messages\n"[{""role"": ""user"", ""content"": ""a""}, {""role"": ""assistant"", ""content"": ""b""}]"\n',
        b"text\r\na\r\n\r\nb\r\n",
    ],
    words=[b'""', b'",', b"\r", b"\r\n", b"prompt", b"text", b"system", b"[{"],
)
