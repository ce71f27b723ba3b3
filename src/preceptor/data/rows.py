"""Rows: what the many shapes of public data have in common, with the file and line each came from.

Accepted shapes, recognised by their columns in this order: `messages`; ShareGPT `conversations`; `prompt` and
`completion` (texts or lists of messages); Alpaca `instruction`, `input`, `output`; plain `text`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from preceptor.data.formats import Record, read_records
from preceptor.errors import InputError, accepted, did_you_mean, shown

if TYPE_CHECKING:
    from preceptor.data.template import Message
    from preceptor.recipe import DatasetSpec

ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
# Shape -> (columns it needs, columns it may use). The first whose needed columns are all there is taken.
SHAPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ()),
    "conversations": (("conversations",), ("system",)),
    "prompt/completion": (("prompt", "completion"), ("system",)),
    "instruction/input/output": (("instruction", "output"), ("input", "system")),
    "text": (("text",), ()),
}
PROMPT_SHAPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "prompt": (("prompt",), ("system",)),
    "instruction/input": (("instruction",), ("input", "system")),
}


@dataclass(frozen=True)
class Row:
    """One example, either a conversation (`messages`) or plain `text`.

    `extra` holds the other columns (task, metric, choices, ...); `origin` is where it came from
    ("file.jsonl:12").
    """

    dataset: str
    messages: tuple[Message, ...] | None
    text: str | None
    extra: dict[str, Any] = field(default_factory=dict)
    origin: str = ""
    given: int = 0
    """Characters at the start of `text` that are given and not learned."""

    @property
    def prompt_messages(self) -> tuple[Message, ...]:
        """The messages before the first assistant turn; of plain text none."""
        messages = self.messages or ()
        roles = [message["role"] for message in messages]
        return messages[: roles.index("assistant")] if "assistant" in roles else messages

    @property
    def answer(self) -> str | None:
        """The first assistant turn; None if there is none."""
        return next((m["content"] for m in self.messages or () if m["role"] == "assistant"), None)

    @property
    def prompt(self) -> str:
        """What identifies the row for holdouts and overlap.

        It is everything before the first assistant turn, with runs of whitespace as one space. Of plain text,
        and of a conversation that the assistant opens, it is all of it.
        """
        parts = [message["content"] for message in self.prompt_messages]
        if not parts:
            parts = [self.text or "", *(message["content"] for message in self.messages or ())]
        return " ".join(" ".join(parts).split())

    @property
    def prompt_key(self) -> bytes:
        """A digest of `prompt`, to compare many."""
        return hashlib.sha256(self.prompt.encode("utf-8", "surrogatepass")).digest()


def read_rows(
    name: str,
    spec: DatasetSpec,
    *,
    announce: Callable[[str], None],
    path: str | Sequence[str] | None = None,
    answers: bool = True,
) -> list[Row]:
    """Reads a dataset whose paths are already resolved, and announces what was found.

    Args:
        name: the dataset's name in the recipe.
        spec: where it is and how it is read.
        announce: given one line, "NAME: ...".
        path: other files than `spec.path`, read the same way (the spec's `test`).
        answers: False accepts prompts alone as well (`prompt`, or `instruction` and `input`), for generation.

    Raises:
        InputError: one sentence with file and line; see the messages.
    """
    given = spec.path if path is None else path
    paths = [given] if isinstance(given, str) else list(given)
    columns = dict(spec.columns or {})
    shapes = SHAPES if answers else {**SHAPES, **PROMPT_SHAPES}
    unknown = [column for column in columns if not any(column in n + o for n, o in shapes.values())]
    if unknown:
        known = sorted({column for needed, optional in shapes.values() for column in needed + optional})
        raise InputError(
            f"data {name}: columns has {unknown[0]!r}{did_you_mean(unknown[0], known)}; accepted are "
            f"{accepted(known)}, "
            "each followed by the file's own name for it"
        )
    rows: list[Row] = []
    shape: str | None = None
    formats: list[str] = []
    for file in paths:
        how, records = read_records(name, file, format=spec.format, split=spec.split, revision=spec.revision)
        if how not in formats:
            formats.append(how)
        before = len(rows)
        for origin, raw in records:
            record = _renamed(raw, columns, name, origin)
            found = shape_of(record, shapes)
            if shape is None:
                if found is None:
                    raise InputError(_unknown_shape(name, origin, raw, shapes))
                shape = found
            elif found != shape:
                raise InputError(
                    f"{origin}: a row with the columns {accepted_columns(raw)} where the data began with "
                    f"rows of shape "
                    f"`{shape}`; one dataset has one shape"
                )
            rows.append(row_of(name, shape, record, origin, shapes))
        if len(rows) == before:
            raise InputError(f"data {name}: {file} has no rows; an empty file cannot be trained on")
    announce(f"{name}: {len(rows):,} row{'s' if len(rows) != 1 else ''}, {', '.join(formats)}, `{shape}`")
    return rows


def accepted_columns(record: Mapping[str, Any]) -> str:
    """The columns of a record, as a message lists them."""
    return ", ".join(f"`{column}`" for column in record) or "(none)"


def _renamed(record: Record, columns: Mapping[str, str], name: str, origin: str) -> Record:
    if not columns:
        return record
    renamed = dict(record)
    for ours, theirs in columns.items():
        if theirs not in record:
            raise InputError(
                f"{origin}: columns of data {name} maps {ours} to "
                f"{theirs!r}{did_you_mean(theirs, record)}, and the "
                f"row has {accepted_columns(record)}"
            )
        renamed.pop(theirs, None)
    for ours, theirs in columns.items():
        renamed[ours] = record[theirs]
    return renamed


def shape_of(record: Record, shapes: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> str | None:
    """The first of `shapes` that the record's columns make; None if they make none."""
    for shape, (needed, _) in shapes.items():
        # A Parquet or Hub table has every column in every row, empty (None) where the row lacks it.
        if all(record.get(column) is not None or (column in record and len(needed) > 1) for column in needed):
            return shape
    for shape, (needed, _) in shapes.items():
        if all(column in record for column in needed):
            return shape
    return None


def _unknown_shape(name: str, origin: str, record: Record, shapes: Iterable[str]) -> str:
    return (
        f"{origin}: the columns {accepted_columns(record)} are none of the shapes accepted: "
        f"{accepted(f'`{shape}`' for shape in shapes)}; name them with `columns:` of data {name}, for "
        f"example "
        "{prompt: question, completion: answer}"
    )


def row_of(
    name: str,
    shape: str,
    record: Record,
    origin: str,
    shapes: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]],
) -> Row:
    """The record as a row of the dataset `name`; raises InputError, with its origin, for values that are none."""
    used = set(shapes[shape][0]) | set(shapes[shape][1])
    extra = {column: value for column, value in record.items() if column not in used}
    _check_extra(extra, origin)
    if shape == "text":
        return Row(name, None, _string(record["text"], "text", origin), extra, origin)
    messages: list[Message] = []
    if record.get("system") and "system" in used:
        messages.append({"role": "system", "content": _string(record["system"], "system", origin)})
    if shape in ("messages", "conversations"):
        messages += _messages(record[shape], shape, origin)
    elif shape in ("prompt/completion", "prompt"):
        messages += _turns(record["prompt"], "prompt", "user", origin)
        if shape == "prompt/completion":
            messages += _turns(record["completion"], "completion", "assistant", origin)
    else:
        asked = _string(record["instruction"], "instruction", origin)
        if record.get("input"):
            asked += "\n\n" + _string(record["input"], "input", origin)
        messages.append({"role": "user", "content": asked})
        if shape == "instruction/input/output":
            messages.append({"role": "assistant", "content": _string(record["output"], "output", origin)})
    return Row(name, tuple(messages), None, extra, origin)


def _check_extra(value: Any, origin: str, column: str | None = None) -> None:
    """Other columns go into records of what was answered, which are text too."""
    if isinstance(value, str):
        _string(value, f"column {shown(column)}", origin)
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            name = str(key) if column is None else column
            if isinstance(key, str):
                _string(key, f"the name {shown(key)}", origin)
            _check_extra(item, origin, name)


def _string(value: Any, what: str, origin: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{origin}: {what} must be a string, not {shown(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            # JSON can spell what no text holds, and no tokenizer takes.
            raise InputError(
                f"{origin}: character {error.start + 1} of {what} is half a surrogate pair "
                f"({value[error.start]!a}), which is no character; remove it"
            ) from None
    return value


def _turns(value: Any, what: str, role: str, origin: str) -> list[Message]:
    """`prompt` and `completion` hold either a text or a list of messages."""
    if isinstance(value, str):
        _string(value, what, origin)
        if not value.lstrip().startswith("["):
            return [{"role": role, "content": value}]
        # A CSV cell can only hold a list as JSON; a text may begin with a bracket too.
        parsed = _json_list(value)
        return [{"role": role, "content": value}] if parsed is None else _messages(parsed, what, origin)
    if isinstance(value, list):
        return _messages(value, what, origin)
    raise InputError(f"{origin}: {what} must be a string or a list of messages, not {shown(value)}")


def _json_list(text: str) -> list[Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # a JSONDecodeError, or a number of thousands of digits
        return None
    return value if isinstance(value, list) and value and all(isinstance(v, dict) for v in value) else None


def _messages(value: Any, what: str, origin: str) -> list[Message]:
    if isinstance(value, str):
        value = _json_list(value)
        if value is None:
            raise InputError(f"{origin}: {what} must be a list of messages, and this text is no JSON list of objects")
    if not isinstance(value, list):
        raise InputError(f"{origin}: {what} must be a list of messages, not {shown(value)}")
    if not value:
        raise InputError(f"{origin}: {what} is empty; a row needs at least one message")
    messages: list[Message] = []
    for place, message in enumerate(value):
        where = f"{what}[{place}]"
        if not isinstance(message, dict):
            raise InputError(f'{origin}: {where} must be {{"role": ..., "content": ...}}, not {shown(message)}')
        if "from" in message:
            role, content, key = message["from"], message.get("value"), "value"
            role = _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
            allowed: tuple[str, ...] = (*_SHAREGPT_ROLES, *ROLES)
        else:
            role, content, key = message.get("role"), message.get("content"), "content"
            allowed = ROLES
        if role not in ROLES:
            raise InputError(
                f"{origin}: {where} has the role {shown(role)}{did_you_mean(role, ROLES)}; accepted are "
                f"{accepted(allowed)}"
            )
        messages.append({"role": role, "content": _string(content, f"{where}.{key}", origin)})
    return messages
