"""Rows in a file of plain text."""

from __future__ import annotations

from pathlib import Path

from fuzz.reading import read
from fuzz.scaffold import Target
from preceptor.data.rows import Row


def check(data: bytes, folder: Path) -> list[Row]:
    file = folder / "rows.txt"
    file.write_bytes(data)
    return read(file)


TARGET = Target(
    name="text",
    check=check,
    seeds=[b"one\ntwo\n", b"one\nstill one\n\ntwo\r\n\r\nthree", b"one<|endoftext|>\n\ntwo\n<|endoftext|>"],
    words=[b"<|endoftext|>", b"\n\n", b"\r\n \r\n", b"\x0c", b"\xe2\x80\xa8"],
)
