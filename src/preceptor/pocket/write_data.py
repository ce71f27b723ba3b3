"""Writes the clean data that the pocket teacher is trained on: `python -m preceptor.pocket.write_data FOLDER`.

`recipes/pocket_teacher.yaml` reads what this writes: `clean.jsonl`, `test.jsonl` and `tokenizer/`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from preceptor.pocket.tasks import make_rows
from preceptor.pocket.tokenizer import build_tokenizer
from preceptor.system.files import write_atomic

TRAIN_ROWS, TEST_ROWS, SEED = 80_000, 480, 1


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the teacher's data and tokenizer into the folder given on the command line."""
    parser = argparse.ArgumentParser(prog="python -m preceptor.pocket.write_data", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write")
    parser.add_argument("--rows", type=int, default=TRAIN_ROWS, help=f"training rows (default: {TRAIN_ROWS})")
    options = parser.parse_args(argv)
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "clean.jsonl", make_rows("train", options.rows, SEED))
    write_rows(folder / "test.jsonl", make_rows("test", TEST_ROWS, SEED))
    build_tokenizer().save_pretrained(folder / "tokenizer")


if __name__ == "__main__":
    main()
