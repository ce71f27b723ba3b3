"""Asks a model behind an OpenAI-compatible endpoint: many requests at once, patiently, and never the same one twice.

A judge is slow, costs money and now and then says no. What it has replied is therefore on the disk before anything is
done with it (`endpoint_cache`), what may pass is tried again (`endpoint_batch`), and what cannot is said in one
sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preceptor.errors import InputError, RunFailed
from preceptor.evaluation.endpoint_access import access_key, checked_url
from preceptor.evaluation.endpoint_batch import Batch, GivenUp
from preceptor.evaluation.endpoint_cache import EndpointCache, cache_key
from preceptor.evaluation.endpoint_client import Problem
from preceptor.evaluation.endpoint_reply import encodable
from preceptor.evaluation.progress import Progress
from preceptor.evaluation.usage import Usage
from preceptor.recipe.suites import EndpointSpec

if TYPE_CHECKING:
    from preceptor.data.template import Message


@dataclass(frozen=True)
class Completion:
    """A conversation to be continued by at most `max_tokens` new tokens.

    What is None is not sent, so that servers which refuse unknown fields are not told of it. `top_logprobs` asks for
    the log-probabilities of that many most probable tokens at each position.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float | None = 0.0
    seed: int | None = None
    top_logprobs: int | None = None
    top_p: float | None = None

    def body(self, spec: EndpointSpec) -> dict[str, Any]:
        """What is sent to `spec`, as JSON."""
        body: dict[str, Any] = {
            "model": spec.model,
            "messages": [{"role": each["role"], "content": encodable(each["content"])} for each in self.messages],
            spec.token_limit_field: self.max_tokens,
        }
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.top_p is not None:
            body["top_p"] = self.top_p
        if self.seed is not None:
            body["seed"] = self.seed
        if self.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return {field: value for field, value in body.items() if field not in spec.omit}


@dataclass(frozen=True)
class Reply:
    """What came back.

    `finish_reason` is the endpoint's own word: "stop", or "length" where the limit on new tokens ended the text; ours
    is "content_filter" or "context_length" where it refused the content of the request, and the text is then empty.
    `logprobs` holds the top log-probabilities of each token of the text, None where the endpoint gave none.
    """

    text: str
    finish_reason: str | None
    logprobs: tuple[dict[str, float], ...] | None
    prompt_tokens: int
    completion_tokens: int
    cached: bool
    model: str | None

    @classmethod
    def _of(cls, fields: Mapping[str, Any], *, cached: bool) -> Reply:
        logprobs = fields["logprobs"]
        return cls(
            text=str(fields["text"]),
            finish_reason=fields["finish_reason"],
            logprobs=None if logprobs is None else tuple(dict(each) for each in logprobs),
            prompt_tokens=int(fields["prompt_tokens"] or 0),
            completion_tokens=int(fields["completion_tokens"] or 0),
            cached=cached,
            model=fields["model"],
        )


class Endpoint:
    """A model behind an OpenAI-compatible endpoint, with a cache of its replies.

    The access key is read from the environment variable `spec.key_env` and is found in no file, log line or message.

    Args:
        spec: where it is, and how it is to be asked.
        cache: the file of replies; made with the first of them.
        log: takes a line.
        where: what messages begin with, such as the recipe's path of the spec.

    Raises:
        InputError: the environment variable is not set, or the URL cannot be one of an endpoint.
    """

    def __init__(self, spec: EndpointSpec, *, cache: Path, log: Callable[[str], None], where: str = "") -> None:
        self.spec, self.cache, self.log = spec, cache, log
        self.usage = Usage(spec.price)
        self._where = f"{where}: " if where else ""
        self._url = checked_url(spec.endpoint, self._where)
        self._access_key = access_key(spec.key_env, self._where)
        self._met = False

    def complete(self, requests: Sequence[Completion], what: str) -> Iterator[tuple[int, Reply]]:
        """Replies as they come, each with the index of its request: those in the cache first, without any network.

        Equal requests are sent once. `what` begins the lines of progress.

        Raises:
            InputError: the endpoint cannot be reached, or refuses the key, the model's name or the request, before it
                has replied to anything.
            RunFailed: a request came to no reply, though the endpoint had replied before or every attempt was made.
        """
        yield from self._complete(requests, what, self.usage)

    def _complete(self, requests: Sequence[Completion], what: str, total: Usage) -> Iterator[tuple[int, Reply]]:
        usage = Usage(self.spec.price)
        bodies: dict[str, dict[str, Any]] = {}
        places: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            body = request.body(self.spec)
            key = cache_key(self._url, body)
            bodies[key] = body
            places.setdefault(key, []).append(i)
        try:
            with EndpointCache(self.cache) as cache:
                if cache.unreadable:
                    self.log(f"{cache.path}: {cache.unreadable:,} unreadable lines are passed over")
                for key in list(bodies):
                    if (fields := cache.get(key)) is not None:
                        del bodies[key]
                        yield from self._replies(fields, places[key], usage, cached=True)
                if usage.cached:
                    self.log(f"{what}: {usage.cached:,} of {len(requests):,} replies are in the cache")
                yield from self._ask(bodies, places, cache, usage, what)
        finally:
            total.add(usage)
        self.log(f"{what}: {usage.sentence()}")

    def check(self, *, top_logprobs: int | None = None) -> None:
        """Asks one short question, so that a wrong key, name or field is known before hours of other work.

        It is sent with the fields of the requests to come, and kept in the cache like any other; it is logged, and no
        part of `usage`, which counts what a benchmark asks.

        Raises:
            InputError, RunFailed: as `complete`; `top_logprobs` are wanted and none are given.
        """
        question = Completion(({"role": "user", "content": "Say OK."},), 16, top_logprobs=top_logprobs)
        what = f"{self.spec.title}: a first question"
        for _, reply in self._complete([question], what, Usage(self.spec.price)):
            if top_logprobs is not None and reply.logprobs is None:
                raise self.no_logprobs()

    def no_logprobs(self) -> InputError:
        """The error for whoever asked for log-probabilities and got a reply without them."""
        return InputError(
            f"{self._where}{self.spec.title}: the endpoint gives no log-probabilities, which `preference: logprobs` "
            "reads; use an endpoint that gives them (`logprobs` and `top_logprobs`), or `preference: ranking`"
        )

    def _ask(
        self,
        bodies: Mapping[str, dict[str, Any]],
        places: Mapping[str, list[int]],
        cache: EndpointCache,
        usage: Usage,
        what: str,
    ) -> Iterator[tuple[int, Reply]]:
        if not bodies:
            return
        total = sum(len(each) for each in places.values())

        def keep(key: str, fields: dict[str, Any]) -> None:
            if "top_logprobs" in bodies[key] and fields["logprobs"] is None:
                return  # of no use to whoever asked for them; a server that gives them by then is asked again
            try:
                cache.add(key, fields)
            except OSError as error:
                raise RunFailed(f"{self.cache}: the cache of replies cannot be written ({error.strerror})") from error

        progress = Progress(what, total, self.log, unit="requests", done=usage.requests)
        batch = Batch(self.spec, self._access_key, bodies, keep=keep, usage=usage, met=self._met, log=self.log)
        try:
            for key, fields in batch:
                self._met = True
                if isinstance(fields, Problem):
                    self.log(f"{what}: {self.spec.title} refuses the content of a request ({fields.words})")
                    fields = _refused(fields)
                yield from self._replies(fields, places[key], usage, cached=False)
                progress(len(places[key]), detail=usage.paid())
        except GivenUp as error:
            kept = sum(len(places[key]) for key in places if cache.get(key) is not None)
            raise self._in_words(error, kept, total) from None

    def _replies(
        self, fields: Mapping[str, Any], places: Sequence[int], usage: Usage, *, cached: bool
    ) -> Iterator[tuple[int, Reply]]:
        """The same reply for every equal request; only the first may have been paid."""
        for place in places:
            reply = Reply._of(fields, cached=cached)
            usage.count(fields, cached=cached, repeated=place != places[0])
            yield place, reply
            cached = True

    def _in_words(self, error: GivenUp, kept: int, total: int) -> InputError | RunFailed:
        at = f"{self._where}{self.spec.title}"
        words = error.problem.words
        mend = {
            "unreachable": f"{at}: {words}; start the server, or set `endpoint` to the URL of one that runs",
            "key": f"{at}: {self._key_refused(words)}",
            "model": f"{at}: the endpoint knows no such model ({words}); "
            f"write `model` as {self.spec.endpoint.rstrip('/')}/models lists it",
            "address": f"{at}: the endpoint has no chat completions there ({words}); "
            "`endpoint` is the base URL, which often ends in /v1",
            "limit field": f"{at}: the endpoint refuses the field {self.spec.token_limit_field} ({words}); "
            f"set `token_limit_field: {self._other_limit_field}`",
            "request": f"{at}: the endpoint refuses the request ({words})"
            + ("; `preference: ranking` needs no log-probabilities" if "logprobs" in words else ""),
            "quota": f"{at}: the account has no quota left ({words}); raise it, and run the same command again",
        }
        if error.problem.kind in mend and error.first:
            return InputError(mend[error.problem.kind])
        count = f"{error.attempts:,} attempt{'' if error.attempts == 1 else 's'}"
        waits = ""
        if error.problem.wait is not None:
            waits = f", asking to wait {error.problem.wait:,.0f} s"
        if error.problem.kind == "key":
            words = self._key_refused(words)
        return RunFailed(
            f"{at}: a request came to no reply in {count}, at last: {words}{waits}; {kept:,} of {total:,} replies are "
            f"kept in {self.cache}"
        )

    def _key_refused(self, status: str) -> str:
        if self.spec.key_env is None:
            return f"the endpoint wants a key ({status}); set `key_env` to the environment variable that holds it"
        return (
            f"the endpoint refuses the key in the environment variable {self.spec.key_env} ({status}); "
            "put a valid key for this model there"
        )

    @property
    def _other_limit_field(self) -> str:
        return "max_completion_tokens" if self.spec.token_limit_field == "max_tokens" else "max_tokens"


def _refused(problem: Problem) -> dict[str, Any]:
    """The fields of an empty reply. They are not kept: an endpoint with a longer context may reply another time."""
    return {
        "text": "",
        "finish_reason": problem.finish_reason,
        "logprobs": None,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "model": None,
    }
