"""What of a chat completion is used, read from whatever a server made of the format."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any


def reply_fields(value: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `Reply` in a chat completion, whatever the server left out: null content is an empty text."""
    choice = value["choices"][0]
    usage = value.get("usage") if isinstance(value.get("usage"), dict) else {}
    reason, model = choice.get("finish_reason"), value.get("model")
    return {
        "text": _text(choice["message"].get("content")),
        "finish_reason": encodable(reason) if isinstance(reason, str) else None,
        "logprobs": _top_logprobs(choice.get("logprobs")),
        "prompt_tokens": _count(usage, "prompt_tokens"),
        "completion_tokens": _count(usage, "completion_tokens"),
        "model": encodable(model) if isinstance(model, str) else None,
    }


def is_reply(value: Any) -> bool:
    """Whether a value read back from a file is what `reply_fields` gives: every field, each of its type."""
    return isinstance(value, dict) and all(name in value and good(value[name]) for name, good in _FIELDS.items())


def _is_logprobs(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and all(isinstance(top, dict) and all(map(_is_finite, top.values())) for top in value)
    )


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value <= _LARGEST)


def _is_name(value: Any) -> bool:
    return value is None or isinstance(value, str)


_LARGEST = 1e15
"""Beyond this no logarithm of a probability and no number of tokens is meant."""
_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "finish_reason": _is_name,
    "logprobs": _is_logprobs,
    "prompt_tokens": _is_count,
    "completion_tokens": _is_count,
    "model": _is_name,
}


def _text(content: Any) -> str:
    if isinstance(content, list):  # in parts, as requests may be written
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(encodable(part) for part in parts if isinstance(part, str))
    return encodable(content) if isinstance(content, str) else ""


def _count(usage: Any, name: str) -> int | None:
    count = usage.get(name)
    return count if type(count) is int and _is_count(count) else None


def _top_logprobs(given: Any) -> list[dict[str, float]] | None:
    """For each token its most probable alternatives and itself; None unless the server gave all of it."""
    tokens = given.get("content") if isinstance(given, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        return None
    tops: list[dict[str, float]] = []
    for token in tokens:
        top: dict[str, float] = {}
        others = token.get("top_logprobs")
        for each in [token, *(others if isinstance(others, list) else [])]:
            if not isinstance(each, dict):
                continue
            text, value = each.get("token"), each.get("logprob")
            # Minus infinity says what leaving the token out says. Tokens that decode to one text: the likelier.
            if isinstance(text, str) and isinstance(value, int | float) and _is_finite(value):
                text = encodable(text)
                top[text] = max(float(value), top.get(text, -math.inf))
        tops.append(top)
    return tops or None


def encodable(text: str) -> str:
    """`text` with halves of surrogate pairs, which JSON can spell and UTF-8 cannot, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
