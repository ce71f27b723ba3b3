"""Reading files into records (dictionaries with a place of origin). A new data format is added here.

Every format is a function from a path to an iterator over (origin, record); what the columns of a record mean
is decided in `rows.py`. No pickle is read, no code that comes with a data set is run, and nothing it names elsewhere
is opened. What would take memory without bound (a line of gigabytes, a small archive of a huge file) is refused.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from preceptor.data.card import check_card
from preceptor.errors import InputError, accepted, first_sentence, shown

Record = dict[str, Any]
Records = Iterator[tuple[str, Record]]

DOCUMENT_END = "<|endoftext|>"

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
MAX_LINE = 64 << 20  # bytes of one line
MAX_WHOLE = 1 << 30  # bytes of a file in a format that is read whole
ROWS_AT_ONCE = 256  # of a table; a few megabytes of a real one
NAMES = {
    "jsonl": "JSONL",
    "json": "JSON",
    "csv": "CSV",
    "parquet": "Parquet",
    "text": "text",
    "hub": "data set",
}


def detect_format(name: str, path: str) -> str:
    """The format of a file, by its suffix (`.gz` aside), or "hub" for a folder or a Hub id.

    Raises:
        InputError: nothing is there, or the suffix is not known.
    """
    file = Path(path)
    suffix = Path(path.removesuffix(".gz")).suffix.lower()
    if file.is_dir():
        return "hub"
    if not file.exists():
        if suffix not in _SUFFIXES and _HUB_ID.fullmatch(path):
            return "hub"
        raise InputError(
            f"data {name}: {path} does not exist; give a file, a folder or a Hub id (owner/name), "
            f"relative to the "
            "recipe or the working directory"
        )
    if suffix not in _SUFFIXES:
        raise InputError(
            f"data {name}: the format of {path} cannot be told from its name; accepted are "
            f"{accepted(_SUFFIXES)}, or set `format:` to {accepted(_READERS)}"
        )
    return _SUFFIXES[suffix]


def read_records(
    name: str, path: str, *, format: str | None = None, split: str = "train", revision: str | None = None
) -> tuple[str, Records]:
    """Opens one file, folder or Hub id. Returns how it is read, in words, and its records in order.

    Args:
        name: the dataset's name, for messages.
        path: a file, a folder, or a Hub id.
        format: overrides what the name of the file says.
        split: of a folder or Hub id.
        revision: of a Hub id.

    Raises:
        InputError: with the file and line, here or while the records are drawn.
    """
    if format is not None and format not in _READERS:
        raise InputError(f"data {name}: format {format!r} is not known; accepted are {accepted(_READERS)}")
    kind = format or detect_format(name, path)
    if kind == "hub":
        return NAMES[kind], _read_hub(path, split, revision)
    if not Path(path).is_file():
        raise InputError(f"data {name}: {path} is not a file; `format: {kind}` reads one file")
    if kind == "text":
        return _read_text(path)
    return NAMES[kind], _READERS[kind](path)


def _text(path: str) -> str:
    """The whole file as text."""
    lines: list[str] = []
    size = 0
    for line in _lines(path, whole=True):  # much JSON is one line
        size += len(line)
        if size > MAX_WHOLE:
            raise InputError(f"{path}: holds more than {MAX_WHOLE:,} characters; split it, or save it as JSONL")
        lines.append(line)
    return "".join(lines)


def _lines(path: str, *, whole: bool = False) -> Iterator[str]:
    """Lines of a UTF-8 file, gzipped or not, ending kept; of a file that is read `whole` one line may be all of it."""
    most, mend = (MAX_WHOLE, "split it, or save it as JSONL") if whole else (MAX_LINE, "split it")
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else Path(path).open("rb") as file:
            for number in count(1):
                line = file.readline(most + 1)
                if not line:
                    return
                if len(line) > most:
                    raise InputError(f"{path}:{number}: the line has more than {most:,} bytes; {mend}")
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{path}:{number}: byte {error.start + 1} of the line is not valid UTF-8; "
                        "save the file as UTF-8"
                    ) from None
    except InputError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        # gzip.BadGzipFile is an OSError; a cut gzip file ends in EOFError, one damaged inside in zlib.error
        raise InputError(f"{path}: it cannot be read: {first_sentence(error)}") from None


class _BadJson(Exception):  # noqa: N818 - never leaves this file
    """What is wrong with a JSON text, and in which line."""

    def __init__(self, said: str, line: int = 1, more_follows: bool = False) -> None:
        super().__init__(said)
        self.line, self.more_follows = line, more_follows


def _json(text: str) -> Any:
    """The value of a JSON text. Raises _BadJson."""
    try:
        return json.loads(text, object_pairs_hook=_object_of)
    except json.JSONDecodeError as error:
        said = f"{error.msg} at column {error.colno}"
        raise _BadJson(said, error.lineno, error.msg == "Extra data" and error.lineno > 1) from None
    except RecursionError:
        raise _BadJson("too deep") from None
    except ValueError:  # int() refuses more than 4,300 digits
        raise _BadJson("a number of thousands of digits") from None


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no key stands twice: which of the two counts, every reader decides differently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _BadJson(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} is given twice")
    return found


def _read_jsonl(path: str) -> Records:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = _json(line.strip())
        except _BadJson as bad:
            raise InputError(f"{path}:{number}: not valid JSON: {bad}; JSONL has one object per line") from None
        yield f"{path}:{number}", _object(record, f"{path}:{number}")


def _object(record: Any, origin: str) -> Record:
    if not isinstance(record, dict):
        raise InputError(
            f'{origin}: a row must be an object such as {{"messages": [...]}}, and this is {shown(record)}'
        )
    return record


def _read_json(path: str) -> Records:
    text = _text(path)
    if not text.strip():
        return
    try:
        content = _json(text)
    except _BadJson as bad:
        if bad.more_follows:
            yield from _read_jsonl(path)  # JSON lines in a file named .json, as many data sets have it
            return
        raise InputError(f"{path}:{bad.line}: not valid JSON: {bad}") from None
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    elif isinstance(content, dict) and "data" not in content and "\n" not in text.strip():
        content = [content]  # a JSON-lines file of one row
    if not isinstance(content, list):
        raise InputError(f'{path}: a JSON file must hold a list of rows or {{"data": [rows]}}, not {shown(content)}')
    for number, record in enumerate(content, 1):
        yield f"{path}: row {number}", _object(record, f"{path}: row {number}")


def _read_csv(path: str) -> Records:
    text = _text(path)
    # A long answer in one cell exceeds the default limit of 131,072 characters.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            origin = f"{path}:{reader.line_num}"
            if not cells:
                continue
            if header is None:
                header = cells
                if len(set(header)) < len(header) or not all(header):
                    raise InputError(f"{origin}: the first line must name the columns, each once, not {shown(header)}")
                continue
            if len(cells) != len(header):
                raise InputError(f"{origin}: {len(cells)} cells where the first line names {len(header)} columns")
            yield origin, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not valid CSV: {error}") from None


def _read_parquet(path: str) -> Records:
    import pyarrow.parquet as parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", record
    except InputError:
        raise
    except Exception as error:  # of a damaged file also UnicodeDecodeError, OverflowError, KeyError, …
        raise InputError(f"{path}: not a readable Parquet file: {first_sentence(error)}") from None


def _check_columns(path: str, names: list[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path}: the column {shown(twice[0])} is there twice; remove one")


def _read_text(path: str) -> tuple[str, Records]:
    """Plain text: one row per document.

    Documents end in `<|endoftext|>` where the file has that mark anywhere, else they are parted by blank
    lines, else each line is one.
    """
    text = _text(path)
    if DOCUMENT_END in text:
        parts, how = re.split(re.escape(DOCUMENT_END), text), f"split at {DOCUMENT_END}"
    elif re.search(r"\S[^\S\n]*\r?\n[^\S\n]*\r?\n\s*\S", text):
        parts, how = re.split(r"\n(?:[^\S\n]*\n)+", text), "split at blank lines"
    else:
        parts, how = text.split("\n"), "one row per line"

    def records() -> Records:
        line = 1
        place = 0
        for part in parts:
            body = part.strip()
            if body:
                start = text.index(body, place)
                line += text.count("\n", place, start)
                place = start
                yield f"{path}:{line}", {"text": body}

    return f"text, {how}", records()


def _read_hub(path: str, split: str, revision: str | None) -> Records:
    import datasets

    where = f"{path} (split {split})"
    try:
        if (Path(path) / "state.json").is_file() or (Path(path) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(path)
            if isinstance(loaded, datasets.DatasetDict):
                if split not in loaded:
                    raise InputError(f"{path}: it has no split {split!r}; it has {accepted(loaded)}")
                loaded = loaded[split]
        else:
            if Path(path).is_dir():
                check_card(Path(path))
            loaded = datasets.load_dataset(path, split=split, revision=revision)
        _check_columns(path, loaded.column_names)
    except InputError:
        raise
    except Exception as error:  # the library raises its own, the Hub client's and the network's exceptions
        raise InputError(
            f"{where}: the data set cannot be loaded: {first_sentence(error)}; check the name, the split, "
            "the revision and the network"
        ) from None
    number = 0
    try:
        # As Arrow: decoding a column of images or sound would open the files and addresses that its rows name.
        for table in loaded.with_format("arrow").iter(ROWS_AT_ONCE):
            for record in table.to_pylist():
                number += 1
                yield f"{where}: row {number}", record
    except Exception as error:
        raise InputError(f"{where}: row {number + 1} cannot be read: {first_sentence(error)}") from None


_READERS: dict[str, Callable[..., Any]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "text": _read_text,
    "hub": _read_hub,
}
