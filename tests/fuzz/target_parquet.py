"""Rows in a Parquet file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from fuzz.reading import read
from fuzz.scaffold import Target
from preceptor.data.rows import Row


def check(data: bytes, folder: Path) -> list[Row]:
    file = folder / "rows.parquet"
    file.write_bytes(data)
    return read(file)


def table(rows: list[dict[str, Any]], **options: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, **options)
    return file.getvalue()


TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
TARGET = Target(
    name="parquet",
    check=check,
    seeds=[
        table([{"prompt": "a", "completion": "b", "n": 1}, {"prompt": "c", "completion": "d", "n": None}]),
        table([{"messages": TALK, "x": 1.5}], compression="none", use_dictionary=False),
        table([{"text": "a" * 300}] * 5, compression="zstd", store_schema=False),
    ],
    words=[b"PAR1", b"\x15\x04", b"\xff\xff\xff\x7f"],
)
