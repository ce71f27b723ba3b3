"""Which rows are trained on, held out and tested: filters, overlap and holdouts, before any tokenizer.

They depend on the seed and the prompts alone, so that every stage and every machine keeps out the same ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from preceptor.data.rows import Row, accepted_columns, read_rows
from preceptor.errors import InputError, did_you_mean, shown

if TYPE_CHECKING:
    from preceptor.recipe import DatasetSpec, OverlapSpec

Announce = Callable[[str], None]


@dataclass(frozen=True)
class SplitRows:
    """A dataset's rows before any tokenizer: trained on, held out of training, and separate test rows.

    `overlapping` counts the rows removed because another dataset has their prompt.
    """

    name: str
    train: list[Row]
    holdout: list[Row]
    test: list[Row]
    overlapping: int = 0


def split_rows(
    specs: Mapping[str, DatasetSpec],
    *,
    seed: int,
    overlap: OverlapSpec | None = None,
    announce: Announce,
    generated: Collection[str] = (),
    answers: bool = True,
) -> dict[str, SplitRows]:
    """Reads datasets and parts them into training, holdout and test rows, without a tokenizer.

    `answers=False` also accepts rows that hold a prompt alone (for generation). See `prepare_datasets`.
    """
    parts: dict[str, SplitRows] = {}
    for name, spec in specs.items():
        train = filter_rows(name, read_rows(name, spec, announce=announce, answers=answers), spec.where)
        test: list[Row] = []
        if spec.test is not None:

            def announce_test(line: str) -> None:
                announce(line.replace(":", ": test,", 1))

            rows = read_rows(name, spec, announce=announce_test, path=spec.test, answers=answers)
            test = filter_rows(name, rows, spec.where)
        if spec.where:
            announce(f"{name}: {counted(len(train))} where {_conditions(spec.where)}")
        if answers and (spec.targets or "assistant") == "assistant":
            _check_answers(name, train)
        parts[name] = SplitRows(name, train, [], test)
    parts = _without_overlap(parts, overlap, generated, announce)
    for name, spec in specs.items():
        part = parts[name]
        if spec.holdout == "all":
            parts[name] = SplitRows(name, [], part.train, part.test, part.overlapping)
        elif spec.holdout:
            train, holdout = hold_out(name, part.train, spec.holdout, seed)
            announce(f"{name}: {counted(len(holdout))} held out, {len(train):,} left to train on")
            parts[name] = SplitRows(name, train, holdout, part.test, part.overlapping)
    return parts


def filter_rows(name: str, rows: Sequence[Row], where: Mapping[str, Any]) -> list[Row]:
    """The rows whose columns have the given values (any one of them where a list is given).

    Raises:
        InputError: no row has such a column, or none such a value.
    """
    kept = list(rows)
    for column, wanted in where.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        if not any(column in row.extra for row in rows):
            columns = list(dict.fromkeys(c for row in rows for c in row.extra))
            raise InputError(
                f"data {name}: where asks for the column {column!r}{did_you_mean(column, columns)}, and "
                f"the rows have "
                f"{accepted_columns(dict.fromkeys(columns))} beside their text"
            )
        found = Counter(shown(row.extra.get(column)) for row in kept)
        kept = [row for row in kept if _is_one_of(row.extra.get(column), values)]
        if not kept:
            common = ", ".join(value for value, _ in found.most_common(10))
            raise InputError(f"data {name}: no row is left where {column} is {shown(wanted)}; it is {common}")
    return kept


def _is_one_of(cell: Any, values: Sequence[Any]) -> bool:
    # CSV cells are texts, and a recipe's 3 or true are not. True equals 1 in Python, and here it must not.
    return any(
        (cell == value and isinstance(cell, bool) == isinstance(value, bool))
        or (isinstance(cell, str) and not isinstance(value, str) and cell.lower() == str(value).lower())
        for value in values
    )


def _conditions(where: Mapping[str, Any]) -> str:
    return " and ".join(f"{column} is {shown(value)}" for column, value in where.items())


def _check_answers(name: str, rows: Sequence[Row]) -> None:
    if any(row.text is not None or row.answer is not None for row in rows):
        return
    raise InputError(
        f"data {name}: none of its {len(rows):,} rows has an assistant turn (the first is "
        f"{rows[0].origin}), so there "
        "is nothing to learn; give answers, or set `targets: all`"
    )


def hold_out(name: str, rows: Sequence[Row], count: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Parts rows into (training, holdout), both in the order given.

    Prompts are taken in the order of sha256(seed, prompt) until `count` rows are out; rows with one prompt go
    together, so there may be a few more.

    Raises:
        InputError: nothing would be left to train on.
    """
    by_prompt: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(row.prompt, []).append(i)
    ranked = sorted(
        by_prompt,
        key=lambda prompt: hashlib.sha256(f"{seed}\n{prompt}".encode("utf-8", "surrogatepass")).digest(),
    )
    out: set[int] = set()
    for prompt in ranked:
        if len(out) >= count:
            break
        out.update(by_prompt[prompt])
    if len(out) == len(rows):
        raise InputError(
            f"data {name}: holdout is {count:,}, and it has {len(rows):,} rows of {len(by_prompt):,} "
            f"different "
            "prompts, so that none would be left to train on; hold out fewer"
        )
    return [row for i, row in enumerate(rows) if i not in out], [rows[i] for i in sorted(out)]


def _without_overlap(
    parts: Mapping[str, SplitRows],
    overlap: OverlapSpec | None,
    generated: Collection[str],
    announce: Announce,
) -> dict[str, SplitRows]:
    """Refuses prompts in two datasets, or in train and test; removes them from where the recipe says."""
    losers = [] if overlap is None else overlap.losers
    keys = {
        (name, kind): {row.prompt_key for row in rows}
        for name, part in parts.items()
        for kind, rows in (("train", part.train), ("test", part.test))
    }
    problems: list[str] = []
    remove: dict[str, set[bytes]] = {}
    places = sorted(keys, key=lambda place: (place[0], place[1] == "test"))
    for i, a in enumerate(places):
        for b in places[i + 1 :]:
            if a[1] == b[1] == "test":
                continue  # two evaluations may ask the same
            if a[0] != b[0] and (a[0] in generated or b[0] in generated):
                continue
            shared = keys[a] & keys[b]
            if not shared:
                continue
            # Test rows stay: what was measured before is measured again.
            loser = next((name for name in losers if (name, "train") in (a, b)), None)
            if loser is not None:
                remove.setdefault(loser, set()).update(shared)
                continue
            row = next(r for r in _part(parts, a) if r.prompt_key in shared)
            problems.append(
                f"{_count(_part(parts, a), shared)} of {_place(a)} and {_count(_part(parts, b), shared)} of "
                f"{_place(b)} have the same prompts (the first is {row.origin})"
            )
    if problems:
        names = sorted(parts)
        raise InputError(
            f"data {', '.join(names)}: {'; '.join(problems)}; what is trained on must not be measured on or counted "
            "twice: set `overlap: {drop_from: NAME}` to the dataset that shall lose its copies"
        )
    result = dict(parts)
    for name, shared in remove.items():
        part = parts[name]
        kept = [row for row in part.train if row.prompt_key not in shared]
        gone = len(part.train) - len(kept)
        announce(f"{name}: {counted(gone)} removed, their prompts are in other data too")
        if not kept:
            raise InputError(
                f"data {name}: all its {counted(gone)} have prompts of other data, so that "
                f"`overlap: {{drop_from: {name}}}` "
                "leaves nothing to train on; drop from another dataset"
            )
        result[name] = SplitRows(name, kept, [], part.test, gone)
    return result


def _part(parts: Mapping[str, SplitRows], place: tuple[str, str]) -> list[Row]:
    part = parts[place[0]]
    return part.train if place[1] == "train" else part.test


def _place(place: tuple[str, str]) -> str:
    return place[0] if place[1] == "train" else f"the test rows of {place[0]}"


def _count(rows: Iterable[Row], keys: set[bytes]) -> str:
    return counted(sum(row.prompt_key in keys for row in rows))


def counted(number: int) -> str:
    """`1 row`, `1,234 rows`."""
    return f"{number:,} row{'s' if number != 1 else ''}"
