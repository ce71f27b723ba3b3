"""What a path in a recipe means: a file or folder here, or the id of something on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from preceptor.errors import InputError

_VARIABLE = re.compile(r"\$(\w+)|\$\{([^}]*)\}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILE_SUFFIXES = (
    ".jsonl",
    ".json",
    ".csv",
    ".tsv",
    ".parquet",
    ".txt",
    ".gz",
    ".zst",
    ".safetensors",
    ".jinja",
)


def expand(text: str) -> str:
    """Replaces `$NAME` and `${NAME}` by environment variables and a leading `~` by the home folder.

    Raises InputError naming a variable that is not set: an empty string would point somewhere else.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise InputError(f"{text!r} uses the environment variable {name}, which is not set; export {name} first")
        return os.environ[name]

    return str(Path(replaced).expanduser()) if (replaced := _VARIABLE.sub(value, text)).startswith("~") else replaced


def local_path(text: str, folder: Path) -> Path | None:
    """The absolute path that `text` names, or None when it is a Hub id.

    It is looked for in the recipe's `folder` first, then in the working directory. What is in neither, and
    is written `name` or `owner/name` without the ending of a data file, is a Hub id. Raises InputError for
    what is neither.
    """
    written = expand(text)
    path = Path(written)
    for base in (folder, Path.cwd()):
        candidate = base / path  # an absolute path stays as it is
        if candidate.exists():
            return candidate.absolute()
    if _HUB_ID.fullmatch(written) and not written.endswith(_FILE_SUFFIXES):
        return None
    where = f"{path}" if path.is_absolute() else f"{path} in {folder} or {Path.cwd()}"
    raise InputError(f"{text!r} does not exist: there is no {where}; mend the path, or give a Hub id owner/name")
