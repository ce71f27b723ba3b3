"""What the replies of an endpoint cost: requests, tokens, money. Printed and put into scores.json; never a guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from preceptor.recipe.suites import PriceSpec


@dataclass
class Usage:
    """Counts over all that one `Endpoint` was asked.

    Tokens are those the endpoint itself reports: `prompt_tokens` and `completion_tokens` of the requests sent now,
    `cached_…` of those that an earlier run sent and this one had not to pay again.
    """

    price: PriceSpec | None = None
    requests: int = 0
    """Replies given, cached ones too."""
    cached: int = 0
    """Of them, those that needed no request."""
    retried: int = 0
    """Attempts beyond the first of each request."""
    failed: int = 0
    """Requests that came to no reply, and those answered by a refusal of their content."""
    cut: int = 0
    """Replies that ended at the limit on new tokens."""
    uncounted: int = 0
    """Replies for which the endpoint reported no tokens."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    cached_completion_tokens: int = 0

    def count(self, fields: Mapping[str, Any], *, cached: bool, repeated: bool) -> None:
        """One more reply, by its fields; `repeated` where an equal request has brought its tokens already."""
        self.requests += 1
        self.cached += cached
        self.cut += fields["finish_reason"] == "length"
        if repeated:
            return
        self.uncounted += fields["prompt_tokens"] is None or fields["completion_tokens"] is None
        prompt, completion = fields["prompt_tokens"] or 0, fields["completion_tokens"] or 0
        if cached:
            self.cached_prompt_tokens += prompt
            self.cached_completion_tokens += completion
        else:
            self.prompt_tokens += prompt
            self.completion_tokens += completion

    def add(self, other: Usage) -> None:
        """Adds the counts of `other`."""
        for each in fields(self):
            if each.name != "price":
                setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def cost(self) -> float | None:
        """What the requests sent now cost, in the currency of the price; None where no price is given."""
        return self._cost(self.prompt_tokens, self.completion_tokens)

    def cost_in_all(self) -> float | None:
        """The same with the cached replies, at what they cost when they were asked for."""
        return self._cost(
            self.prompt_tokens + self.cached_prompt_tokens, self.completion_tokens + self.cached_completion_tokens
        )

    def _cost(self, prompt: int, completion: int) -> float | None:
        if self.price is None:
            return None
        return (prompt * self.price.input + completion * self.price.output) / 1e6

    def as_dict(self) -> dict[str, Any]:
        """For scores.json."""
        return {
            "requests": self.requests,
            "cached": self.cached,
            "retried": self.retried,
            "failed": self.failed,
            "cut": self.cut,
            "uncounted": self.uncounted,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_prompt_tokens": self.cached_prompt_tokens,
            "cached_completion_tokens": self.cached_completion_tokens,
            "cost": self.cost(),
            "cost_in_all": self.cost_in_all(),
        }

    def sentence(self) -> str:
        """Such as `160 requests (120 from the cache, 3 retried), 41,200 + 9,800 tokens, cost 0.31 (1.20 in all)`."""
        notes = [
            f"{count:,} {what}"
            for count, what in (
                (self.cached, "from the cache"),
                (self.retried, "retried"),
                (self.failed, "failed"),
                (self.cut, "cut at the token limit"),
                (self.uncounted, "without a token count"),
            )
            if count
        ]
        text = f"{self.requests:,} request{'' if self.requests == 1 else 's'}"
        text += f" ({', '.join(notes)})" if notes else ""
        text += f", {self.paid()}"
        cost, in_all = self.cost(), self.cost_in_all()
        return text if in_all is None or in_all == cost else f"{text} ({_money(in_all)} with the cached ones)"

    def paid(self) -> str:
        """Such as `41,200 + 9,800 tokens, cost 0.31`: of the prompts and of the replies, sent now."""
        cost = self.cost()
        text = f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens"
        return text if cost is None else f"{text}, cost {_money(cost)}"


def _money(amount: float) -> str:
    """Two decimals, or enough of them to show two digits of a small amount."""
    return f"{amount:,.2f}" if amount >= 1 or amount == 0 else f"{amount:.2g}"
