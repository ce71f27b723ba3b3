"""Many requests of one endpoint at once: a few workers, each trying its request until it is replied to or given up.

It runs in a thread with an event loop of its own, so that requests go on while whoever asked works on the replies.
"""

from __future__ import annotations

import asyncio
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from preceptor.evaluation.endpoint_client import EndpointClient, Problem
from preceptor.evaluation.usage import Usage
from preceptor.recipe.suites import EndpointSpec

FIRST_WAIT = 1.0
"""Seconds before the second attempt of a request; each further wait is twice as long."""
LONGEST_WAIT = 60.0
LONGEST_ASKED = 600.0
"""Seconds an endpoint may ask us to wait; one that asks for more has failed."""
SAY_SECONDS = 10.0
"""Between two lines about attempts that failed."""

Fields = dict[str, Any]


class GivenUp(Exception):  # noqa: N818 - not an error of ours; Endpoint says it in words
    """A request came to nothing. `first` says that the endpoint has not replied to anything yet."""

    def __init__(self, problem: Problem, attempts: int, first: bool) -> None:
        super().__init__(problem.words)
        self.problem, self.attempts, self.first = problem, attempts, first


@dataclass
class _End:
    error: BaseException | None


class Batch:
    """Requests by cache key, sent at most `spec.concurrency` at once.

    Args:
        spec: the endpoint.
        key: its access key.
        bodies: what is sent, by cache key.
        keep: called with each reply before anybody sees it, in the batch's thread.
        usage: counts attempts and tokens.
        met: whether the endpoint has replied before. The first request to a stranger goes alone: a wrong key or name
            is then one refusal and not one for each worker.
        log: takes a line; called where the batch is iterated.
    """

    def __init__(
        self,
        spec: EndpointSpec,
        key: str | None,
        bodies: Mapping[str, Fields],
        *,
        keep: Callable[[str, Fields], None],
        usage: Usage,
        met: bool,
        log: Callable[[str], None],
    ) -> None:
        self._spec, self._key, self._bodies, self._keep = spec, key, bodies, keep
        self.usage, self.met, self._log = usage, met, log
        self._todo = iter(bodies.items())
        self._events: queue.SimpleQueue[tuple[str, Fields | Problem] | str | _End] = queue.SimpleQueue()
        self._started = threading.Event()
        self._cancel: Callable[[], None] = lambda: None
        self._said = -SAY_SECONDS
        self._not_before = 0.0

    def __iter__(self) -> Iterator[tuple[str, Fields | Problem]]:
        """Replies as they come, or the problem where the endpoint refuses the content of one request.

        Whoever stops early, by an exception such as KeyboardInterrupt too, cancels what is under way.

        Raises:
            GivenUp: a request came to nothing. What was under way beside it has been waited for and kept.
        """
        thread = threading.Thread(target=self._run, name="endpoint", daemon=True)
        thread.start()
        try:
            while not isinstance(event := self._events.get(), _End):
                if isinstance(event, str):
                    self._log(event)
                else:
                    yield event
            if event.error is not None:
                raise event.error
        finally:
            self._started.wait(10)
            self._cancel()
            thread.join(10)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            asyncio.run(self._main())
        except BaseException as raised:
            error = raised
        finally:
            self._started.set()
            self._events.put(_End(error))

    async def _main(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def cancel() -> None:
            with suppress(RuntimeError):  # the loop has ended by itself meanwhile
                loop.call_soon_threadsafe(task.cancel)

        self._cancel = cancel
        self._stop = asyncio.Event()
        self._given_up: GivenUp | None = None
        self._started.set()
        client = EndpointClient(self._spec, self._key)
        try:
            if not self.met:
                await self._work(client, at_most=1)
            workers = min(self._spec.concurrency, len(self._bodies))
            await asyncio.gather(*(self._work(client) for _ in range(workers)))
        finally:
            await client.close()
        if self._given_up is not None:
            raise self._given_up

    async def _work(self, client: EndpointClient, at_most: int | None = None) -> None:
        done = 0
        while not self._stop.is_set() and done != at_most:
            key, body = next(self._todo, (None, None))
            if key is None or body is None:
                return
            try:
                reply = await self._reply(client, body)
            except GivenUp as error:
                self._given_up = self._given_up or error
                self.usage.failed += 1
                self._stop.set()
                return
            if reply is None:
                return
            self.met = True
            if isinstance(reply, Problem):
                self.usage.failed += 1
            else:
                self._keep(key, reply)
            self._events.put((key, reply))
            done += 1

    async def _reply(self, client: EndpointClient, body: Fields) -> Fields | Problem | None:
        """None where another request was given up before this one could be tried again."""
        attempt = 0
        while True:
            while (left := self._not_before - time.monotonic()) > 0 and not self._stop.is_set():
                await self._sleep(left)
            if self._stop.is_set():
                return None
            attempt += 1
            self.usage.retried += attempt > 1
            reply = await client.attempt(body)
            if not isinstance(reply, Problem) or reply.kind == "content":
                return reply
            asked = reply.wait or 0.0
            hopeless = not reply.passing or asked > LONGEST_ASKED or (reply.kind == "unreachable" and not self.met)
            if hopeless or attempt > self._spec.retries:
                raise GivenUp(reply, attempt, first=not self.met)
            await self._sleep(self._wait(attempt, asked, reply))

    def _wait(self, attempt: int, asked: float, problem: Problem) -> float:
        """Seconds until the next attempt: exponential back-off with jitter, never sooner than the endpoint asked."""
        # Half to all of it: many workers turned away together must not come back together.
        wait = min(FIRST_WAIT * 2.0 ** min(attempt - 1, 30), LONGEST_WAIT) * random.uniform(0.5, 1.0)
        now = time.monotonic()
        if asked:
            self._not_before = max(self._not_before, now + asked)  # for all workers: the limit is the account's
            wait += asked
        if now - self._said >= SAY_SECONDS:
            self._said = now
            self._events.put(
                f"{self._spec.title}: {problem.words}; attempt {attempt + 1} of {self._spec.retries + 1} "
                f"in {wait:,.1f} s"
            )
        return wait

    async def _sleep(self, seconds: float) -> None:
        """Sleeps, and wakes early when the batch is given up."""
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except asyncio.TimeoutError:
            return
