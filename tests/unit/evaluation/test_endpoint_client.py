"""What an endpoint's words are made into: waits and sentences."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from preceptor.evaluation.endpoint_client import _message, _retry_after


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
