"""No key and no long piece of one is left, however an endpoint spells what it repeats."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from preceptor.evaluation.endpoint_mask import mask, mask_fields

KEY = "sk-proj-0123456789abcdefXYZ"
SLASHED = "sk-test/secret+0123=="


def escaped(text: str) -> str:
    """As a careful JSON writer has every sign."""
    return "".join(f"\\u{ord(letter):04x}" for letter in text)


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


@pytest.mark.parametrize(
    "spelled",
    [
        SLASHED,
        SLASHED.replace("/", "\\/"),
        SLASHED.replace("/", "\\u002f").replace("+", "\\u002B"),
        SLASHED.replace("/", "\\\\/"),
        escaped(SLASHED),
        json.dumps(escaped(SLASHED))[1:-1],
        SLASHED[3:-3].replace("/", "\\/"),
    ],
)
def test_a_key_that_json_spells_in_another_way(spelled: str) -> None:
    assert mask(f'{{"sent": "{spelled}", "n": 1}}', SLASHED) == '{"sent": "***", "n": 1}'


def test_what_is_no_key_stays_as_it_was() -> None:
    text = "a\\nb \\u00e9 \\\\ C:\\dir \0 \n end\\"
    assert mask(text, KEY) == text
    assert mask_fields(reply(text), KEY) == reply(text)


def reply(text: str, **given: Any) -> dict[str, Any]:
    return {"text": text, "finish_reason": "stop", "logprobs": None, "prompt_tokens": 1, "model": "m", **given}


@pytest.mark.parametrize("field", ["text", "finish_reason", "model"])
@pytest.mark.parametrize("spelled", [SLASHED, SLASHED.replace("/", "\\/"), escaped(SLASHED)])
def test_the_fields_of_a_reply(field: str, spelled: str) -> None:
    found = mask_fields(reply("fine") | {field: f"sent {spelled}."}, SLASHED)
    assert found == reply("fine") | {field: "sent ***."}


def test_a_reply_keeps_what_is_only_a_piece_and_whatever_a_short_key_is() -> None:
    assert mask_fields(reply("the secret of sk-test is a bearer of news"), SLASHED)["text"] == (
        "the secret of sk-test is a bearer of news"
    )
    assert mask_fields(reply("it is EMPTY"), "EMPTY")["text"] == "it is EMPTY"
    assert mask_fields(reply("it"), None) == reply("it")


def test_the_tokens_of_a_reply() -> None:
    tokens = [{"key ": -0.1, "a": -2.0}, {"sk-t": -0.2, "sk-": -0.3}, {"est/secret+01": -0.4}, {}, {"23==!": -0.5}]
    found = mask_fields(reply("key ***!", logprobs=[*tokens, {"m": -0.1, f"is {SLASHED}": -9.0}]), SLASHED)
    assert found["logprobs"] == [
        {"key ": -0.1, "a": -2.0},
        {"***": -0.2},
        {"***": -0.4},
        {},
        {"***": -0.5},
        {"m": -0.1, "is ***": -9.0},
    ]
