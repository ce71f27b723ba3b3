"""What the named data are: how they are written, how many rows there are, how long, and which they share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from preceptor.errors import InputError
from preceptor.recipe import DatasetSpec, expand, local_path
from preceptor.recipe.base import stage_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from preceptor.data.rows import Row

SAMPLE = 1000
"""Rows whose length is measured, spread over the file."""
_TEMPLATE = 16
"""Tokens that a chat template may put around a message."""


@dataclass(frozen=True)
class DataFacts:
    """A dataset as named; `rows` is None for one on the Hub, of which nothing else is known here."""

    name: str
    path: str
    role: str
    rows: int | None = None
    words: str = ""
    scored: bool = False
    """Whether its rows say in a column `metric` how answers are scored."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our column names and the file's, where they are not ours."""
    prompts: frozenset[bytes] = frozenset()
    sample: list[Row] = field(default_factory=list, repr=False)

    @property
    def holdout(self) -> int:
        """Rows to keep out of training: a tenth, at most 500."""
        return 500 if self.rows is None else min(500, max(1, self.rows // 10))

    @property
    def trained(self) -> int | None:
        """Rows that are left to train on."""
        return None if self.rows is None else self.rows - self.holdout


def look_at_data(
    named: Sequence[tuple[str, str]], reserved: Sequence[str], log: Callable[[str], None]
) -> list[DataFacts]:
    """Reads the datasets of (role, path) whole; what is on the Hub, or a folder, is taken as it is.

    Raises:
        InputError: a file that is not there or cannot be read, with its line.
    """
    found: list[DataFacts] = []
    for role, path in named:
        option = "--data" if role == "general" else "--domain"
        if stage_of(path) is not None:
            raise InputError(f"preceptor init: {option} {path}: give a file or a Hub id such as org/name")
        try:
            local = local_path(path, Path.cwd())
        except InputError as error:
            raise InputError(f"preceptor init: {option} {error}") from None
        if local is not None and any(local == local_path(each.path, Path.cwd()) for each in found):
            raise InputError(f"preceptor init: {path} is given twice; give other rows, or leave one of them out")
        name = _name(path, {*reserved, *(each.name for each in found)})
        if local is None or local.is_dir():
            where = "on the Hub" if local is None else "a folder"
            found.append(DataFacts(name, path, role, words=f"{where}, not looked at here"))
            continue
        found.append(_read(name, path, role, log))
    return found


def _read(name: str, path: str, role: str, log: Callable[[str], None]) -> DataFacts:
    from preceptor.data.formats import detect_format
    from preceptor.data.rows import read_rows
    from preceptor.starter.columns import columns_of

    said: list[str] = []
    try:
        detect_format(name, expand(path))
    except InputError:  # it speaks of a key of the recipe that is not there yet
        raise InputError(
            f"preceptor init: the format of {path} cannot be told from its name; give a file that ends in .jsonl, "
            ".json, .csv, .parquet or .txt, as it is or with .gz"
        ) from None
    columns = columns_of(name, expand(path))
    rows = read_rows(name, DatasetSpec(path=expand(path), columns=columns or None), announce=said.append)
    prompts = frozenset(row.prompt_key for row in rows)
    if len(prompts) < 2:
        raise InputError(
            f"preceptor init: {path} has {len(prompts)} prompt; give at least two, one to train on and one to hold out"
        )
    words = said[0].partition(": ")[2]
    log(f"{name}: {words}")
    scored = any("metric" in row.extra for row in rows)
    sample = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    return DataFacts(name, path, role, len(rows), words, scored, columns, prompts, sample)


def _name(path: str, taken: set[str]) -> str:
    """A dataset's name, from the file's or the repository's."""
    last = path.rstrip("/").rpartition("/")[2]
    stem = last.removesuffix(".gz")
    stem = re.sub(r"\.(jsonl|ndjson|json|csv|parquet|txt)$", "", stem)
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")[:60] or "data"
    return next(each for each in (name, *(f"{name}_{n}" for n in range(2, 1000))) if each not in taken)


def shared_prompts(data: Sequence[DataFacts]) -> int:
    """How many prompts occur in more than one dataset."""
    seen: set[bytes] = set()
    twice: set[bytes] = set()
    for each in data:
        twice |= seen & each.prompts
        seen |= each.prompts
    return len(twice)


def texts(data: Sequence[DataFacts], limit: int = 200) -> list[str]:
    """Some texts of the rows."""
    found = [message["content"] for each in data for row in each.sample[:limit] for message in row.messages or ()]
    return found + [row.text for each in data for row in each.sample[:limit] if row.text]


def length_of_most(data: Sequence[DataFacts], tokenizer: Tokenizer, share: float = 0.99) -> int | None:
    """Tokens that this share of the rows does not exceed, a chat template's own allowed for; None without rows."""
    lengths: list[int] = []
    for each in data:
        for row in each.sample:
            messages = row.messages or ({"role": "", "content": row.text or ""},)
            ids = tokenizer.encode_batch([m["content"] for m in messages], add_special_tokens=False)
            lengths.append(sum(len(each.ids) + _TEMPLATE for each in ids))
    return sorted(lengths)[min(int(share * len(lengths)), len(lengths) - 1)] if lengths else None
