"""Hides an access key in what an endpoint says, so that an endpoint that repeats its key writes it into no file.

A key comes back whole or in pieces, plain or with the escapes of JSON, and cut into the tokens of a reply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

PIECE = 6
"""Signs of a key in a row that no message may show. A key of no more (`EMPTY`) is no secret a reply has to lose."""
_BEARER = re.compile(r"(?i)\bbearer\s+[^\s\"',}]+")
# One letter as plain text or as JSON, escaped once or more often, has it.
_ESCAPED = re.compile(r"\\+u00[0-9a-fA-F]{2}")
_LETTER = re.compile(rf"{_ESCAPED.pattern}|\\+.|.", re.DOTALL)


def mask(text: str, key: str | None) -> str:
    """`text` without the key: no run of `PIECE` or more of its characters is left, nor a bearer token."""
    text = _BEARER.sub("Bearer ***", text)
    return text if not key else _without(text, _hidden(text, key, min(PIECE, len(key))))


def mask_fields(fields: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    """The fields of a reply (see `reply_fields`) without the key.

    Only the whole key is taken out, not its pieces, which an honest text may hold as well. Of log-probabilities, the
    tokens that make up the key lose their names and alternatives.
    """
    if key is None or len(key) <= PIECE:
        return dict(fields)

    def masked(text: str) -> str:
        return _without(text, _hidden(text, key, len(key)))

    found = {name: masked(value) if isinstance(value, str) else value for name, value in fields.items()}
    if fields["logprobs"] is not None:
        found["logprobs"] = _named_anew(fields["logprobs"], key, masked)
    return found


def _named_anew(tops: Sequence[Mapping[str, float]], key: str, masked: Callable[[str], str]) -> list[dict[str, float]]:
    tokens = [next(iter(top), "") for top in tops]  # the first is the one that was written
    hidden = _hidden("".join(tokens), key, len(key))
    found, begin = [], 0
    for token, top in zip(tokens, tops, strict=True):
        end = begin + len(token)
        if any(hidden[begin:end]):
            found.append({"***": max(top.values())})
        else:
            found.append({masked(name): value for name, value in top.items()})
        begin = end
    return found


def _without(text: str, hidden: bytearray) -> str:
    runs = groupby(zip(hidden, text, strict=True), key=lambda each: each[0])
    return "".join("***" if hide else "".join(letter for _, letter in run) for hide, run in runs)


def _hidden(text: str, key: str, size: int) -> bytearray:
    """1 for each character of `text` that spells one of `size` letters of the key in a row, else 0."""
    if len(text) < size:
        return bytearray(len(text))
    spelled = _LETTER.findall(text)
    plain, secret = _plain(spelled), _plain(_LETTER.findall(key))
    marks = bytearray(len(plain))
    for start in range(len(secret) - size + 1):
        piece = secret[start : start + size]
        found = plain.find(piece)
        while found >= 0:
            marks[found : found + size] = b"\1" * size
            found = plain.find(piece, found + 1)
    return bytearray(b"".join(bytes([mark]) * len(each) for mark, each in zip(marks, spelled, strict=True)))


def _plain(spelled: list[str]) -> str:
    """The letters meant, one for each."""
    return "".join(chr(int(each[-2:], 16)) if _ESCAPED.fullmatch(each) else each[-1] for each in spelled)
