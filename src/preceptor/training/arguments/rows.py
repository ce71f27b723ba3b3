"""Rows as TRL and datasets have them, to rows as the trainer takes them.

A record's columns say what it is: `messages`, ShareGPT `conversations`, `prompt` and `completion` as lists of messages,
Alpaca's columns, plain `text`, and token ids that somebody made already. All but one are read as a recipe reads them:
`prompt` and `completion` as two texts are TRL's "standard" form, one text without a chat template of which the
completion is learned.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from preceptor.data.chat import Dropped, EncodedRow, choose_template, encode_rows
from preceptor.data.rows import SHAPES, Row, accepted_columns, row_of, shape_of
from preceptor.errors import InputError, accepted, shown
from preceptor.training.arguments.settings import RowSettings

_LOG = logging.getLogger("preceptor")
_TOKENS = "input_ids"
_BEARING = ("tools", "chat_template_kwargs", "images", "image")
"""Columns with which TRL's trainers render a row differently."""


def is_encoded(rows: Any) -> bool:
    """Whether `rows` are the trainer's own already (a Mixture is), or none at all."""
    if rows is None:
        return True
    if not isinstance(rows, Sequence | Dataset) or isinstance(rows, IterableDataset | str):
        return False
    return len(rows) > 0 and isinstance(rows[0], EncodedRow)  # type: ignore[arg-type]


def encode(
    rows: Any, where: str, *, dataset: str, tokenizer: PreTrainedTokenizerBase, settings: RowSettings
) -> list[EncodedRow]:
    """Encodes given rows. What cannot be learned from is dropped, counted and logged.

    Args:
        rows: a `datasets.Dataset`, a list of dicts, or any map-style dataset of dicts.
        where: the name of the argument, for messages.
        dataset: the dataset, and so the route, that the rows are counted under.
        tokenizer: of the student; gets the default chat template if it has none.
        settings: see `RowSettings`.

    Raises:
        InputError: rows of no known form or of several forms, a value that is none, a setting that does not fit the
            form, or more than half of the rows lost.
    """
    records = list(_records(rows, where))
    if not records:
        raise InputError(f"{where}: has no rows; give at least one")
    if settings.formatting is not None and _TOKENS not in records[0]:
        records = [{"text": settings.formatting(record)} for record in records]
    if _TOKENS in records[0]:
        found = [_of_tokens(record, f"{where}: row {n}", dataset, settings) for n, record in enumerate(records, 1)]
    else:
        made = list(_rows(records, where, dataset, settings))
        if tokenizer.chat_template is None and any(row.messages is not None for row in made):
            choose_template(tokenizer)
            _LOG.warning("%s: the tokenizer has no chat template; preceptor's default is used and saved with it", where)
        targets = settings.targets or ("all" if settings.completion_only is False else None)
        found = list(encode_rows(made, tokenizer, max_length=settings.max_length, targets=targets))
    kept = [row for row in found if isinstance(row, EncodedRow)]
    dropped = Counter(row.reason for row in found if isinstance(row, Dropped))
    if dropped:
        _report(where, dropped, len(found))
    cut = sum("truncated" in row.notes for row in kept)
    if cut:
        _LOG.warning("%s: %d of %d rows cut to %d tokens", where, cut, len(found), settings.max_length)
    return kept


def _report(where: str, dropped: Counter[str], total: int) -> None:
    reasons = "; ".join(f"{number:,} {reason}" for reason, number in dropped.most_common())
    if dropped.total() == total:
        raise InputError(f"{where}: none of its {total:,} rows can be trained on: {reasons}")
    if 2 * dropped.total() > total:
        raise InputError(
            f"{where}: {dropped.total():,} of {total:,} rows would be dropped, more than half: {reasons}; mend the "
            "rows or `max_length`, or leave those rows out yourself"
        )
    _LOG.warning("%s: %d of %d rows dropped: %s", where, dropped.total(), total, reasons)


# --- records ----------------------------------------------------------------------------------------------------


def _records(rows: Any, where: str) -> Iterator[dict[str, Any]]:
    if isinstance(rows, Mapping):
        raise InputError(
            f"{where}: is a {type(rows).__name__} of {accepted(rows)}; give one of them, for example "
            f"{where}=data[{next(iter(rows), 'train')!r}]"
        )
    if isinstance(rows, str | Path):
        raise InputError(f"{where}: is the path {str(rows)!r}; give `preceptor.load_rows(path, tokenizer, ...)` of it")
    if isinstance(rows, datasets.IterableDataset | IterableDataset):
        raise InputError(
            f"{where}: is a stream, whose rows cannot be counted or drawn in another order; load it without "
            "`streaming=True`, or take the rows you need of it into a list"
        )
    if isinstance(rows, datasets.Dataset | list | tuple):
        drawn: Iterable[Any] = rows
    elif isinstance(rows, Sequence | Dataset) and not isinstance(rows, bytes):
        drawn = (rows[i] for i in range(len(rows)))  # type: ignore[arg-type]
    else:
        raise InputError(f"{where}: {shown(rows)} is no dataset; give a datasets.Dataset or a list of dicts")
    for number, record in enumerate(drawn, 1):
        if not isinstance(record, dict):
            raise InputError(f'{where}: row {number} must be a dict such as {{"messages": [...]}}, not {shown(record)}')
        for column in _BEARING:
            if record.get(column):
                raise InputError(
                    f"{where}: row {number} has the column `{column}`, which is not read here and would change the "
                    "row; remove that column"
                )
        yield record


def _rows(records: Iterable[dict[str, Any]], where: str, dataset: str, settings: RowSettings) -> Iterator[Row]:
    first: str | None = None
    for number, given in enumerate(records, 1):
        origin = f"{where}: row {number}"
        record = given
        if settings.text_column != "text" and settings.text_column in given:
            record = {**given, "text": given[settings.text_column]}
        shape = shape_of(record, SHAPES)
        if shape is None:
            raise InputError(
                f"{origin} has the columns {accepted_columns(given)}, which are none of the forms accepted: "
                f"{accepted([*(f'`{each}`' for each in SHAPES), f'`{_TOKENS}`'])}; rename them, for example with "
                "`dataset.rename_columns`"
            )
        if first is None:
            first = shape
            _check_form(shape, where, settings)
        elif shape != first:
            raise InputError(
                f"{origin} has the columns {accepted_columns(given)} where the rows began with `{first}`; one dataset "
                "has one form"
            )
        prompt, completion = (record.get(column) for column in ("prompt", "completion"))
        if shape == "prompt/completion" and isinstance(prompt, str) and isinstance(completion, str):
            # Without `system`, which TRL does not read either.
            row = row_of(dataset, "text", {"text": prompt + completion}, origin, SHAPES)
            yield Row(dataset, None, row.text, {}, origin, given=len(prompt))
        else:
            yield row_of(dataset, shape, record, origin, SHAPES)


def _check_form(shape: str, where: str, settings: RowSettings) -> None:
    if settings.completion_only and shape != "prompt/completion":
        raise InputError(
            f"args.completion_only_loss: the rows of {where} are `{shape}` and have no completion; leave it out"
        )
    if shape == "text" and (settings.assistant_only or settings.targets == "assistant"):
        word = "args.assistant_only_loss" if settings.assistant_only else "targets"
        raise InputError(f"{word}: the rows of {where} are plain text and have no assistant; leave it out")


# --- rows that are token ids ------------------------------------------------------------------------------------


def _of_tokens(record: dict[str, Any], origin: str, dataset: str, settings: RowSettings) -> EncodedRow | Dropped:
    """A row of `input_ids`, whose targets are where `labels` are not -100, else where every mask given is 1."""
    ids = _whole(record.get(_TOKENS), _TOKENS, origin)
    is_target = np.ones(len(ids), dtype=np.bool_)
    if record.get("labels") is not None:
        labels = _whole(record["labels"], "labels", origin, like=ids)
        is_target = labels != -100
        if (labels[is_target] != ids[is_target]).any():
            raise InputError(
                f"{origin}: its labels are other tokens than its {_TOKENS}; labels here mark what is learned, each the "
                "token at its own place or -100"
            )
    else:
        masks = ["assistant_masks"] + (["completion_mask"] if settings.completion_only is not False else [])
        for name in masks:
            if record.get(name) is not None:
                is_target &= _whole(record[name], name, origin, like=ids) != 0
    notes = ("truncated",) if len(ids) > settings.max_length else ()
    ids, is_target = ids[: settings.max_length].astype(np.int32), is_target[: settings.max_length].copy()
    is_target[:1] = False
    if not is_target.any():
        return Dropped(f"no target within {settings.max_length} tokens" if notes else "no target in the row")
    return EncodedRow(dataset, ids, is_target, origin, notes)


def _whole(values: Any, name: str, origin: str, *, like: Any = None) -> Any:
    try:
        array = np.asarray(values)
    except ValueError:
        array = np.asarray(None)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iub":
        raise InputError(f"{origin}: {name} must be a list of whole numbers, not {shown(values)}")
    if like is not None and len(array) != len(like):
        raise InputError(f"{origin}: has {len(array)} {name} for {len(like)} {_TOKENS}; give one for each")
    return array.astype(np.int64)
