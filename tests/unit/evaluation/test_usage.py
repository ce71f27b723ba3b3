"""What replies cost, counted by hand."""

from __future__ import annotations

import pytest

from preceptor.evaluation.usage import Usage
from preceptor.recipe.suites import PriceSpec


def fields(prompt: int | None, completion: int | None, reason: str = "stop") -> dict[str, object]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "finish_reason": reason}


def test_counts_and_cost() -> None:
    usage = Usage(PriceSpec(input=3.0, output=15.0))
    usage.count(fields(1_000, 200), cached=False, repeated=False)
    usage.count(fields(1_000, 200), cached=True, repeated=True)
    usage.count(fields(500, 100, "length"), cached=True, repeated=False)
    usage.count(fields(None, None), cached=False, repeated=False)
    assert usage.cost() == pytest.approx((1_000 * 3 + 200 * 15) / 1e6)
    assert usage.cost_in_all() == pytest.approx((1_500 * 3 + 300 * 15) / 1e6)
    assert usage.as_dict() == {
        "requests": 4,
        "cached": 2,
        "retried": 0,
        "failed": 0,
        "cut": 1,
        "uncounted": 1,
        "prompt_tokens": 1_000,
        "completion_tokens": 200,
        "cached_prompt_tokens": 500,
        "cached_completion_tokens": 100,
        "cost": usage.cost(),
        "cost_in_all": usage.cost_in_all(),
    }
    assert usage.sentence() == (
        "4 requests (2 from the cache, 1 cut at the token limit, 1 without a token count), 1,000 + 200 tokens, "
        "cost 0.006 (0.009 with the cached ones)"
    )


def test_without_a_price_there_is_no_cost() -> None:
    usage = Usage()
    usage.count(fields(1, 2), cached=False, repeated=False)
    assert usage.cost() is None
    assert usage.as_dict()["cost_in_all"] is None
    assert usage.sentence() == "1 request, 1 + 2 tokens"


def test_adding_keeps_the_price_and_every_count() -> None:
    total = Usage(PriceSpec(input=1.0, output=1.0), requests=1, retried=2, prompt_tokens=5)
    total.add(Usage(requests=3, failed=4, completion_tokens=7, cached_prompt_tokens=9))
    assert total == Usage(
        PriceSpec(input=1.0, output=1.0),
        requests=4,
        retried=2,
        failed=4,
        prompt_tokens=5,
        completion_tokens=7,
        cached_prompt_tokens=9,
    )


@pytest.mark.parametrize(
    ("tokens", "shown"), [(0, "0.00"), (12, "1.2e-05"), (120_000, "0.12"), (1_234_567_800, "1,234.57")]
)
def test_money(tokens: int, shown: str) -> None:
    assert Usage(PriceSpec(input=1.0, output=0.0), prompt_tokens=tokens).paid().endswith(f"cost {shown}")
