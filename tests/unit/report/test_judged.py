"""What the page says of the judge's price: of all replies, not of the last attempt, and no count that nobody made."""

from __future__ import annotations

from typing import Any

import pytest

from preceptor.report.views.judged import usage

COUNTS = {
    "requests": 160, "cached": 120, "retried": 0, "failed": 0, "cut": 2, "uncounted": 0, "prompt_tokens": 1000,
    "completion_tokens": 200, "cached_prompt_tokens": 3000, "cached_completion_tokens": 600,
}  # fmt: skip
ASKED = "160 requests, 120 from the cache, 2 cut at the token limit"
NONE = dict.fromkeys(
    ("prompt_tokens", "completion_tokens", "cached_prompt_tokens", "cached_completion_tokens", "cost", "cost_in_all"), 0
)


@pytest.mark.parametrize(
    ("used", "told"),
    [
        (
            {**COUNTS, "cost": 0.3, "cost_in_all": 1.2},
            f"{ASKED}, 4,000 prompt tokens, 800 completion tokens, cost 1.20 in all, of which 0.3 in the last attempt",
        ),
        (
            {**COUNTS, "cost": 1.2, "cost_in_all": 1.2},
            f"{ASKED}, 4,000 prompt tokens, 800 completion tokens, cost 1.20 in all",
        ),
        ({**COUNTS, "cost": None}, f"{ASKED}, 4,000 prompt tokens, 800 completion tokens"),
        (
            {**COUNTS, "uncounted": 3, "cost": 1.2, "cost_in_all": 1.2},
            f"{ASKED}, 3 without a token count, at least 4,000 prompt tokens, at least 800 completion tokens, cost at "
            "least 1.20 in all",
        ),
        ({**COUNTS, **NONE, "uncounted": 160}, f"{ASKED}, 160 without a token count"),
        ({"requests": 8, "prompt_tokens": 7, "cost": 0.02}, "8 requests, 7 prompt tokens, cost 0.02"),
    ],
)
def test_what_the_judge_cost(used: dict[str, Any], told: str) -> None:
    assert usage({"mt_bench": {"usage": used}}, "mt_bench") == f"The judge: {told}."


@pytest.mark.parametrize("block", [None, {}, {"usage": None}, {"usage": {}}, {"usage": {"requests": None}}])
def test_nothing_is_said_where_nobody_counted(block: Any) -> None:
    assert usage({"mt_bench": block}, "mt_bench") == ""
