"""What a benchmark needs of a judge, whichever way it is reached: answers to many requests, and what they cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from preceptor.errors import InputError
    from preceptor.evaluation.endpoint import Completion, Reply
    from preceptor.evaluation.usage import Usage


class Judge(Protocol):
    """A model that grades. `Endpoint` is one."""

    usage: Usage
    """Counts over all that it was asked."""

    def complete(self, requests: Sequence[Completion], what: str) -> Iterator[tuple[int, Reply]]:
        """Replies as they are done, each with the index of its request; `what` begins progress lines."""
        ...

    def no_logprobs(self) -> InputError:
        """The error for whoever asked for log-probabilities and got a reply without them."""
        ...


def cut_warnings(judge: Judge | None) -> list[str]:
    """What is to be said of replies that the limit on new tokens ended: their verdict may have been to come."""
    if judge is None or not judge.usage.cut:
        return []
    return [
        f"{judge.usage.cut:,} of {judge.usage.requests:,} replies of the judge were ended by the limit on new tokens, "
        "perhaps before the verdict; raise `judge_max_tokens`"
    ]


def file_name(model: str) -> str:
    """A model's name as a file name: what is no letter, digit, dot, hyphen or underscore becomes an underscore.

    Names of served models hold slashes (`Qwen/Qwen3-32B`) and may be whole paths.
    """
    name = re.sub(r"[^\w.-]+", "_", model).strip("_.")
    return name or "judge"
