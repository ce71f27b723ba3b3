"""What a path in a recipe means: a file or folder here, or the id of something on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from preceptor.errors import InputError

_VARIABLE = re.compile(r"\$(\w+)|\$\{([^}]*)\}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
# What such a variable holds would be printed when the path does not exist, and sent to the Hub as a name.
_SECRET = re.compile(r"(^|_|API)(KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
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

    Raises InputError naming a variable that is not set (an empty string would point somewhere else), or whose name says
    that it holds a secret.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if _SECRET.search(name):
            raise InputError(
                f"{text!r} uses the environment variable {name}, which by its name is a secret and no path; "
                "use another variable"
            )
        if name not in os.environ:
            raise InputError(f"{text!r} uses the environment variable {name}, which is not set; export {name} first")
        return os.environ[name]

    replaced = _VARIABLE.sub(value, text)
    if not replaced.startswith("~"):
        return replaced
    try:
        return str(Path(replaced).expanduser())
    except RuntimeError:
        user = replaced.split("/")[0]
        raise InputError(f"{text!r} is in the home folder {user}, and there is none; write out the path") from None


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
        if os.path.exists(candidate):  # noqa: PTH110 - Path.exists raises for names too long, and folders kept shut
            return candidate.absolute()
    if _HUB_ID.fullmatch(written) and not written.endswith(_FILE_SUFFIXES):
        return None
    where = f"{path}"
    if not path.is_absolute():
        where += f" in {folder}" if folder == Path.cwd() else f" in {folder} or {Path.cwd()}"
    raise InputError(f"{text!r} does not exist: there is no {where}; mend the path, or give a Hub id owner/name")
