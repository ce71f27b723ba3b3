"""From the recipe's datasets to encoded rows, with a count of all that is lost on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from preceptor.data.chat import Dropped, EncodedRow, encode_rows
from preceptor.data.rows import Row
from preceptor.data.split import Announce, SplitRows, counted, split_rows
from preceptor.data.template import choose_template
from preceptor.errors import InputError, accepted, shown

if TYPE_CHECKING:
    from preceptor.recipe import DatasetSpec, OverlapSpec

MOST_REASONS = 20  # that are announced one by one


@dataclass
class PreparedDataset:
    """A dataset as tokens.

    `rows`, `holdout_rows` and `test_rows` are the rows of the lists beside them, one for one.

    `dropped` counts rows lost in encoding, by reason, over all three parts.
    """

    name: str
    train: list[EncodedRow]
    holdout: list[EncodedRow]
    test: list[EncodedRow]
    rows: list[Row]
    holdout_rows: list[Row]
    test_rows: list[Row]
    dropped: dict[str, int] = field(default_factory=dict)
    announcements: list[str] = field(default_factory=list)


def prepare_datasets(
    names: Sequence[str],
    specs: Mapping[str, DatasetSpec],
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    max_length: int,
    overlap: OverlapSpec | None = None,
    announce: Announce,
    generated: Collection[str] = (),
) -> dict[str, PreparedDataset]:
    """Reads, splits and encodes datasets.

    Args:
        names: the datasets to encode.
        specs: of the whole recipe, paths resolved: prompts are compared among all of them, so that each stage
            removes the same overlapping rows.
        tokenizer: a fast one with a chat template.
        seed: fixes the holdouts.
        max_length: tokens per row; a dataset's own limit applies if it is lower.
        overlap: which dataset loses rows whose prompts another one has; None makes them an error.
        announce: given each line to print, "NAME: ...".
        generated: datasets made from another's prompts, which are not compared with other datasets.

    Raises:
        InputError: unreadable data, overlapping prompts, a dataset without answers, or one that loses more
            than half its rows in encoding (unless its spec has `allow_drops`).
    """
    said: dict[str, list[str]] = {}

    def note(line: str) -> None:
        said.setdefault(line.split(":", 1)[0], []).append(line)
        announce(line)

    splits = split_rows(specs, seed=seed, overlap=overlap, announce=note, generated=generated)
    prepared = {}
    for name in names:
        prepared[name] = encode_split(splits[name], specs[name], tokenizer, max_length=max_length, announce=note)
        prepared[name].announcements = said.get(name, [])
    return prepared


def encode_split(
    split: SplitRows,
    spec: DatasetSpec,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    announce: Announce,
) -> PreparedDataset:
    """Encodes a dataset's rows, counts and announces what is dropped. Raises as `prepare_datasets` does."""
    limit = min(max_length, spec.max_length or max_length)
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    kept: list[tuple[list[EncodedRow], list[Row]]] = []
    lost_in_training = 0
    for rows in (split.train, split.holdout, split.test):
        encoded: list[EncodedRow] = []
        sources: list[Row] = []
        for row, result in zip(rows, encode_rows(rows, tokenizer, max_length=limit, targets=spec.targets), strict=True):
            if isinstance(result, Dropped):
                dropped[result.reason] += 1
                continue
            encoded.append(result if spec.route is None else replace(result, own_route=_route_of(row, spec.route)))
            sources.append(row)
            notes.update(result.notes)
        if rows is split.train:
            lost_in_training = len(rows) - len(encoded)
        kept.append((encoded, sources))
    total = len(split.train)
    # A template may word each refusal anew.
    for reason, number in dropped.most_common(MOST_REASONS):
        announce(f"{split.name}: {counted(number)} dropped: {reason}")
    if rare := dropped.most_common()[MOST_REASONS:]:
        announce(f"{split.name}: {counted(sum(number for _, number in rare))} dropped for {len(rare):,} other reasons")
    for what, number in notes.most_common():
        announce(f"{split.name}: {counted(number)} {_NOTES[what]}".replace("LIMIT", f"{limit:,}"))
    reasons = "; ".join(f"{number:,} {reason}" for reason, number in dropped.most_common(MOST_REASONS))
    if lost_in_training == total:
        raise InputError(f"data {split.name}: none of its {total:,} rows can be trained on: {reasons}")
    if 2 * lost_in_training > total and not spec.allow_drops:
        raise InputError(
            f"data {split.name}: {lost_in_training:,} of {total:,} rows would be dropped, more than half: "
            f"{reasons}; "
            "mend the data or max_length, or set `allow_drops: true`"
        )
    (train, rows_kept), (holdout, holdout_rows), (test, test_rows) = kept
    return PreparedDataset(split.name, train, holdout, test, rows_kept, holdout_rows, test_rows, dict(dropped))


def _route_of(row: Row, column: str) -> str:
    route = row.extra.get(column)
    if not isinstance(route, str) or not route:
        columns = accepted(sorted(row.extra)) if row.extra else "none"
        raise InputError(
            f"{row.origin}: the column {column!r}, which gives a row of {row.dataset} its route, is {shown(route)}; "
            f"write the name of a route there, or change `route` (columns of this row: {columns})"
        )
    return route


_NOTES = {
    "truncated": "cut to LIMIT tokens",
    "earlier turns are no targets": "learned in their last answers only: the chat template rewrites earlier turns",
}


def load_rows(
    path: str | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    name: str = "rows",
    announce: Announce = print,
) -> list[EncodedRow]:
    """The encoded rows of one file or Hub dataset, for a script without a recipe.

    `tokenizer` gets the default chat template when it has none. Rows that cannot be used are dropped, counted and
    announced.

    Raises:
        InputError: as `prepare_datasets`.
    """
    from preceptor.recipe import DatasetSpec

    choose_template(tokenizer)
    spec = DatasetSpec(path=path if isinstance(path, str) else list(path))
    prepared = prepare_datasets([name], {name: spec}, tokenizer, seed=0, max_length=max_length, announce=announce)
    return prepared[name].train
