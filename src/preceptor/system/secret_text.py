"""Secrets written where they do not belong: a recipe is copied into the run, its report and its messages.

So a recipe (or a command line) that holds one is refused before anything of it is repeated, and the refusal names the
place and never the text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

KeyPath = tuple[str | int, ...]
_IN_URL = re.compile(r"[A-Za-z][\w+.-]*://[^/\s?#]*@|[?&](api[-_]?key|key|token|access_token|sig|signature|secret)=")
# Letters and digits among one another, or many: there are none in names such as sk-wikipedia2024-v2 or sk-7b-instruct.
_RANDOM = (
    r"(?:(?=[A-Za-z0-9]{8})(?:[A-Za-z]+\d+[A-Za-z]+\d|\d+[A-Za-z]+\d+[A-Za-z])"
    r"|(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{20})"
)
# Forms that services give their keys so that scanners find them.
_KEYS = re.compile(
    rf"\b(sk-(?=[\w-]*?{_RANDOM})[\w-]{{16,}}"
    r"|hf_[A-Za-z0-9]{20,}|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|gsk_[A-Za-z0-9]{20,}"
    r"|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,})|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\b[Bb]earer +(?=[\w.~+/-]*\d)[\w.~+/-]{12,}"
)
_NAMES = frozenset(
    [
        "access_token",
        "api_key",
        "apikey",
        "auth_token",
        "authorization",
        "client_secret",
        "hub_token",
        "passwd",
        "password",
        "private_key",
        "secret",
        "secret_key",
        "token",
        "use_auth_token",
    ]
)
_FREE = frozenset({"where", "config", "columns"})
"""Mappings with keys of the user's own choice, or of transformers'."""
_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
# Of these the value is a secret; MODEL_KEY or EOS_TOKEN may hold the name of anything.
_SURELY = re.compile(
    r"(SECRET|PASSWORD|PASSWD|API_?KEY|(SECRET|ACCESS|PRIVATE)_KEY|(HF|HUB|ACCESS|AUTH|BEARER)_TOKEN)$", re.IGNORECASE
)
_LEAST = 12  # characters of a variable's value that is no chance word
_MEND = (
    "which would be copied into files and messages; take it out, and name the environment variable that holds it "
    "instead (`key_env` of an endpoint; HF_TOKEN and the trackers' own variables are read by themselves)"
)


def secrets_in(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Where in a raw recipe something is that must not be written, and the rest of the sentence."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            named = str(key).lower() in _NAMES and _FREE.isdisjoint(path)
            if named and isinstance(item, str) and item.strip():
                yield (*path, key), f"is a key for a secret, {_MEND}"
            else:
                yield from secrets_in(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from secrets_in(item, (*path, index))
    elif isinstance(value, str) and (what := secret_in(value)) is not None:
        yield path, f"holds {what}, {_MEND}"


def secret_in(text: str) -> str | None:
    """What kind of secret a text holds, in words that do not repeat it."""
    if _IN_URL.search(text):
        return "a URL with a user name, a password or a key in it"
    if _KEYS.search(text):
        return "what looks like an access key"
    for name, value in os.environ.items():
        if not _VARIABLE.search(name) or len(value) < _LEAST or value.startswith(("/", "~")) or value not in text:
            continue
        if _SURELY.search(name) or re.search(_RANDOM, value):
            return f"what the environment variable {name} holds"
    return None
