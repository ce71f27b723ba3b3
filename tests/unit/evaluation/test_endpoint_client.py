"""What an endpoint's words are made into: waits, sentences, and never a key."""

from __future__ import annotations

import random
import time
from email.utils import formatdate

import pytest

from preceptor.evaluation.endpoint_client import _message, _retry_after, mask

KEY = "sk-proj-0123456789abcdefXYZ"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "20"}, 20.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "1"}, 1.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": formatdate(0, usegmt=True)}, 0.0),
    ],
)
def test_how_long_an_endpoint_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert _retry_after(headers) == seconds


def test_a_date_to_wait_for() -> None:
    asked = _retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)})
    assert asked is not None
    assert 28 <= asked <= 30


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "m", "code": 3}}, "m"),
        ({"error": "m"}, "m"),
        ({"message": "m", "object": "error"}, "m"),
        ({"detail": "m"}, "m"),
        ({"detail": [{"msg": "m"}]}, '[{"msg": "m"}]'),
        ({"message": "", "status": 3}, '{"message": "", "status": 3}'),
        ("<html>", "<html>"),
        (None, ""),
    ],
)
def test_the_sentence_in_an_error(body: object, said: str) -> None:
    assert _message(body) == said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"key {KEY} is wrong", "key *** is wrong"),
        (f"{KEY}{KEY}", "***"),
        (f"{KEY[:8]}...{KEY[-6:]}", "***...***"),
        (f"{KEY[:5]}... is short", f"{KEY[:5]}... is short"),
        ('{"Authorization": "Bearer other-token"}', '{"Authorization": "Bearer ***"}'),
        ("nothing to hide", "nothing to hide"),
        ("", ""),
    ],
)
def test_mask(text: str, shown: str) -> None:
    assert mask(text, KEY) == shown


def test_no_piece_of_a_key_is_left_wherever_it_stands() -> None:
    rng = random.Random(3)
    for _ in range(300):
        start, end = sorted(rng.sample(range(len(KEY) + 1), 2))
        text = "".join(rng.choices("sk-proj012 ", k=5)) + KEY[start:end] + "".join(rng.choices("789abXYZ ", k=5))
        shown = mask(text, KEY)
        assert not any(KEY[i : i + 6] in shown for i in range(len(KEY) - 5))


def test_a_short_key_and_none() -> None:
    assert mask("the key EMPTY", "EMPTY") == "the key ***"
    assert mask("the key EMPTY", None) == "the key EMPTY"
