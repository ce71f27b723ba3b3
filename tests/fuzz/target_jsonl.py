"""Rows in a JSONL file."""

from __future__ import annotations

from pathlib import Path

from fuzz.reading import read
from fuzz.scaffold import Target
from preceptor.data.rows import Row


def check(data: bytes, folder: Path) -> list[Row]:
    file = folder / "rows.jsonl"
    file.write_bytes(data)
    return read(file)


TALK = (
    b'{"messages": [{"role": "user", "content": "hi \\ud83d\\ude00"}, '
    b'{"role": "assistant", "content": "yes"}], "n": 1}\n'
)
TARGET = Target(
    name="jsonl",
    check=check,
    seeds=[
        TALK * 2,
        b'{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}], "system": "x"}\n',
        b'{"prompt": "a", "completion": "b", "x": [1.5, null, {"y": true}]}\n\n{"prompt": "c", "completion": "d"}\n',
        b'{"prompt": [{"role": "user", "content": "a"}], '
        b'"completion": "[{\\"role\\": \\"assistant\\", \\"content\\": \\"b\\"}]"}',
        b'\xef\xbb\xbf{"instruction": "a", "input": "b", "output": "c"}\r\n{"text": "d"}\r\n',
        b'{"text": "d", "metric": "exact"}\n{"text": null}\n[]\n',
    ],
    words=[
        b'"role": ',
        b'"content": ',
        b'"user"',
        b'"assistant"',
        b"\\ud800",
        b"\\u0000",
        b"NaN",
        b"1e999",
        b"{}",
        b"[[",
    ],
)
