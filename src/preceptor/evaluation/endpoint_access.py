"""Where an endpoint is and who asks: its base URL and its access key, looked at before anything is sent.

Neither may carry a secret into a file: a URL with a password is refused, and the key stays in memory.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from preceptor.errors import InputError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def checked_url(text: str, where: str) -> str:
    """The base URL without a slash at its end. Raises InputError, beginning with `where`, for what can be none."""
    # What stands before an @ may be a password.
    given = repr(text) if "@" not in text else "what is given"
    said = f"{where}endpoint: {given} is no URL of an endpoint"
    try:
        url = urlsplit(text)
        url.port  # noqa: B018 - reading it checks it
    except ValueError as error:
        raise InputError(f"{said} ({error}); write its base URL, such as http://127.0.0.1:8000/v1") from None
    if url.username is not None or url.password is not None:
        raise InputError(
            f"{where}endpoint: the URL of {url.hostname} holds a user name or password, which would be written to "
            "files; take it out and give the key with `key_env`"
        )
    if url.scheme not in ("http", "https") or not url.hostname or any(each.isspace() for each in text):
        raise InputError(f"{said}; write its base URL, such as http://127.0.0.1:8000/v1")
    if url.query or url.fragment:
        raise InputError(f"{said}, since it holds a `?` or a `#`; write its base URL, such as http://127.0.0.1:8000/v1")
    path = text.rstrip("/")
    if path.endswith("/chat/completions"):
        raise InputError(f"{said} but of its chat completions; write {path.removesuffix('/chat/completions')}")
    return path


def access_key(variable: str | None, where: str) -> str | None:
    """What the environment variable holds, None without one. Raises InputError where it holds nothing usable.

    A name that may be the key itself, given in the wrong place, is not repeated.
    """
    if variable is None:
        return None
    if not _VARIABLE.fullmatch(variable):
        raise InputError(
            f"{where}key_env: is no name of an environment variable (letters, digits and underscores); put the key "
            "into a variable such as JUDGE_KEY, and write that name"
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        if variable != variable.upper():
            raise InputError(
                f"{where}key_env: the environment variable it names is not set; write the name of a variable that "
                "holds the endpoint's key, not the key itself, or leave key_env out where none is needed"
            )
        raise InputError(
            f"{where}key_env: the environment variable {variable} is not set; "
            f"run `export {variable}=…` with the endpoint's key, or leave key_env out where none is needed"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(
            f"{where}key_env: what the environment variable {variable} holds can be no key; "
            "a key is one line of letters, digits and signs without spaces"
        )
    return key
