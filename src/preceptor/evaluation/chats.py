"""A conversation a model is asked to continue, and what answers it: a local model or an endpoint, behind one protocol.

MT-Bench and AlpacaEval ask through it and need not know which of the two it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from preceptor.data.template import Message


@dataclass(frozen=True)
class ChatRequest:
    """A conversation that ends with the user, and how it is to be continued.

    `temperature` 0 takes the most probable token each time and has no use for `seed`; `top_p` is the share of
    probability that sampling keeps (nucleus sampling, arXiv 1904.09751).
    """

    messages: tuple[Message, ...]
    max_new_tokens: int
    temperature: float
    seed: int
    top_p: float = 1.0


@dataclass(frozen=True)
class Answer:
    """The assistant's text, without whitespace around it.

    `finished` is false where a limit ended it. `tokens` counts those written; `cut` those of the prompt that were left
    out because the model's context is too short for it.
    """

    text: str
    finished: bool
    tokens: int
    cut: int = 0


Advance = Callable[[int, int], None]
"""Takes the numbers of rows and of tokens that are newly done; 0 and 0 when the work begins."""


class Answerer(Protocol):
    """Something that answers. `name` is the model's name in files and logs."""

    name: str

    def answer(self, requests: Sequence[ChatRequest], progress: Advance) -> Iterator[tuple[int, Answer]]:
        """Answers as they are done, each with the index of its request.

        What is answered to a request does not depend on the requests beside it. An answerer that shows its progress
        itself tells `progress` nothing.

        Raises:
            InputError: a request that this model cannot be asked, before any is answered.
            RunFailed: the model stopped answering.
        """
        ...
