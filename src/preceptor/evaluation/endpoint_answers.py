"""A model behind an OpenAI-compatible endpoint as an answerer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from preceptor.evaluation.chats import Advance, Answer, ChatRequest
from preceptor.evaluation.endpoint import Completion

if TYPE_CHECKING:
    from preceptor.evaluation.endpoint import Endpoint


_CUT_SHORT = ("length", "context_length", "content_filter")
"""What endpoints, and `Reply`, call an answer that a limit or a refusal ended; the words for a whole one vary."""


class EndpointAnswerer:
    """Answers with a served model; which template, context and end tokens it has is the server's affair.

    Replies are kept by the endpoint's own cache too, so that none is paid for twice.

    Args:
        endpoint: asked with its own concurrency, retries and progress lines.
        name: the model's name in files and logs.
    """

    def __init__(self, endpoint: Endpoint, *, name: str) -> None:
        self.name = name
        self._endpoint = endpoint

    def answer(self, requests: Sequence[ChatRequest], progress: Advance) -> Iterator[tuple[int, Answer]]:
        """Answers as they are done, each with the index of its request.

        `progress` is not told: the endpoint logs its own, with tokens and cost. A `seed` is sent where it has a use.

        Raises:
            InputError: whatever the endpoint refuses.
            RunFailed: the endpoint stopped answering.
        """
        completions = [
            Completion(
                messages=each.messages,
                max_tokens=each.max_new_tokens,
                temperature=each.temperature,
                seed=each.seed if each.temperature > 0 else None,
                top_p=each.top_p if each.top_p < 1 else None,
            )
            for each in requests
        ]
        for index, reply in self._endpoint.complete(completions, f"{self.name}: answers"):
            yield index, Answer(reply.text.strip(), reply.finish_reason not in _CUT_SHORT, reply.completion_tokens)
