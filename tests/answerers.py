"""Answerers for tests: one that says what it was asked, and one that is killed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from preceptor.evaluation.chats import Advance, Answer, Answerer, ChatRequest


class Echo:
    """Answers with the last question and the seed; keeps what it was asked."""

    def __init__(self, name: str = "echo") -> None:
        self.name = name
        self.asked: list[ChatRequest] = []

    def answer(self, requests: Sequence[ChatRequest], progress: Advance) -> Iterator[tuple[int, Answer]]:
        for index in reversed(range(len(requests))):
            self.asked.append(requests[index])
            said = requests[index].messages[-1]["content"]
            yield index, Answer(f"to {said}: {requests[index].seed}", "cut off" not in said, 3, cut=len(said) // 30)
            progress(1, 3)


class Killed:
    """Answers like another answerer and is interrupted after `after` answers in all."""

    def __init__(self, answerer: Answerer, after: int) -> None:
        self.name, self._answerer, self._left = answerer.name, answerer, after

    def answer(self, requests: Sequence[ChatRequest], progress: Advance) -> Iterator[tuple[int, Answer]]:
        answering: Any = self._answerer.answer(requests, progress)
        for found in answering:
            if not self._left:
                answering.close()  # the traceback would keep it, and its threads, alive
                raise KeyboardInterrupt
            self._left -= 1
            yield found
