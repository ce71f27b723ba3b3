"""Which columns of a file are prompt and answer, where they are called otherwise than rows are."""

from __future__ import annotations

from preceptor.data.formats import read_records
from preceptor.data.rows import SHAPES, accepted_columns
from preceptor.errors import InputError, accepted

# The most telling name first.
_ASKED = ("question", "query", "instruction", "input", "request", "user", "problem", "source")
_ANSWERED = ("answer", "response", "output", "reply", "assistant", "solution", "target")


def columns_of(name: str, path: str) -> dict[str, str]:
    """The `columns:` that a dataset needs: none where the file's own names are those of a shape of rows.

    Raises:
        InputError: the file cannot be read, or no column looks like a prompt or none like an answer.
    """
    _, records = read_records(name, path)
    record = next(records, None)
    if record is None:
        raise InputError(f"preceptor init: {path} has no rows; give a file that has some")
    found = record[1]
    if any(all(column in found for column in needed) for needed, _ in SHAPES.values()):
        return {}
    lowered = {column.lower(): column for column in found}
    asked = [lowered[column] for column in ("prompt", *_ASKED) if column in lowered]
    answered = [lowered[column] for column in ("completion", *_ANSWERED) if column in lowered]
    if not asked or not answered:
        raise InputError(
            f"preceptor init: {path}: the columns {accepted_columns(found)} are none of the shapes accepted: "
            f"{accepted(f'`{shape}`' for shape in SHAPES)}; rename the two that hold prompt and answer to `prompt` and "
            "`completion`"
        )
    return {"prompt": asked[0], "completion": answered[0]}
