"""What must hold of rows that a reader accepted, shared by the targets of the data formats."""

from __future__ import annotations

import json
from pathlib import Path

from preceptor.data.rows import ROLES, Row, read_rows
from preceptor.data.split import filter_rows, hold_out
from preceptor.errors import InputError
from preceptor.recipe import DatasetSpec
from preceptor.system.files import json_text


def read(file: Path) -> list[Row]:
    """The rows of a file as a stage reads them; asserts that nothing in them can break what comes after."""
    lines: list[str] = []
    spec = DatasetSpec(path=str(file))
    rows = read_rows("data", spec, announce=lines.append)
    assert rows
    assert len(lines) == 1
    for row in rows:
        assert (row.text is None) != (row.messages is None)
        for message in row.messages or ():
            assert set(message) == {"role", "content"}
            assert message["role"] in ROLES
            message["content"].encode()
        (row.text or "").encode()
        assert len(row.prompt_key) == 32
    for column in rows[0].extra:
        filter_rows("data", rows, {column: rows[0].extra[column]})
    if file.suffix != ".parquet":  # a table may hold what JSON has no word for, and is told so where that matters
        json.loads(json_text([row.extra for row in rows]).encode())
    try:
        hold_out("data", rows, 1, seed=1)
    except InputError:
        assert len({row.prompt for row in rows}) == 1
    return rows
