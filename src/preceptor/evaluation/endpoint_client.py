"""One attempt at one request of an OpenAI-compatible endpoint, by the official package `openai`.

Whatever goes wrong comes back as a `Problem` in plain words: the package's exceptions carry the request, and with it
the access key, so that none of them leaves this file.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from preceptor.errors import InputError
from preceptor.evaluation.endpoint_mask import mask, mask_fields
from preceptor.evaluation.endpoint_reply import reply_fields
from preceptor.recipe.suites import EndpointSpec

if TYPE_CHECKING:
    from openai import APIStatusError

Kind = Literal["passing", "unreachable", "key", "model", "address", "limit field", "request", "content", "quota"]

_PASSING_STATUS = frozenset({408, 409, 425, 429})
"""Beside 5xx, what another attempt may cure."""
_CONTENT_FILTER = re.compile(r"content[ _]filter|content management policy", re.IGNORECASE)
_TOO_LONG = re.compile(r"context[ _](length|window|size)", re.IGNORECASE)
_NO_SUCH_MODEL = re.compile(
    r"(unknown|invalid|no such|not a valid) model|model\b.*(not found|not exist|unknown|not available)|"
    r"pinned to .* requested",
    re.IGNORECASE,
)
_LIMIT_FIELD = re.compile(r"max_tokens|max_completion_tokens")
_UNSUPPORTED = re.compile(r"not supported|unsupported|unexpected|unknown|unrecognized|not permitted|use '?max_", re.I)
_SHOWN = 300  # characters of the endpoint's own words in a message
_CONNECT_SECONDS = 20.0
_LARGEST = 32 << 20  # bytes of a reply; 2,048 tokens with 20 alternatives each take some 4 MB
_ACCOUNT = ("authorization", "openai-organization", "openai-project")
"""Headers that say who asks, which the package fills from its own variables (OPENAI_ORG_ID), whoever is asked."""


@dataclass(frozen=True)
class Problem:
    """Why an attempt gave no reply.

    `words` say what happened, without the key. `wait` is what the endpoint asked for, in seconds; `finish_reason` is
    set where it refused the content of this one request.
    """

    kind: Kind
    words: str
    wait: float | None = None
    finish_reason: str | None = None

    @property
    def passing(self) -> bool:
        """Whether another attempt may end otherwise."""
        return self.kind in ("passing", "unreachable")


class EndpointClient:
    """Sends bodies to `spec`, each within `spec.timeout` seconds as a whole.

    Must be made and used inside one event loop. Raises InputError where the package `openai` is not installed.
    """

    def __init__(self, spec: EndpointSpec, key: str | None) -> None:
        try:
            import openai
        except ImportError:
            raise InputError(
                "an endpoint needs the package openai, which is not installed; run `pip install openai`"
            ) from None
        self._openai = openai
        self._spec = spec
        self._key = key
        # The package would read a missing key from OPENAI_API_KEY and send it to whatever endpoint this is. Its own
        # retries are off: they know neither the time limit nor the count of attempts. Nor has the account that its
        # variables name anything to do with this endpoint.
        self._client = openai.AsyncOpenAI(
            base_url=spec.endpoint,
            api_key=key or "none",
            max_retries=0,
            timeout=openai.Timeout(spec.timeout, connect=min(_CONNECT_SECONDS, 0.8 * spec.timeout)),
            # A redirect would take the prompts to a server that the recipe does not name.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, event_hooks={"response": [_read_whole]}),
        )
        self._headers: dict[str, str | openai.Omit] = {
            name: openai.Omit() for name in self._client.default_headers if name.lower() in _ACCOUNT
        }
        self._headers["Authorization"] = openai.Omit() if key is None else f"Bearer {key}"

    async def close(self) -> None:
        await self._client.close()

    async def attempt(self, body: Mapping[str, Any]) -> dict[str, Any] | Problem:
        """The endpoint's reply to one request, as `reply_fields` has it, or why there is none."""
        openai = self._openai
        try:
            # The package's own time-out is per read, so that one byte a second would keep a request open for hours.
            raw = await asyncio.wait_for(
                self._client.chat.completions.with_raw_response.create(**body, extra_headers=self._headers),
                self._spec.timeout,
            )
        except (asyncio.TimeoutError, openai.APITimeoutError) as error:
            if _connecting(error):
                return Problem("unreachable", f"no connection within {self._spec.timeout:g} s")
            return Problem("passing", f"no whole reply within {self._spec.timeout:g} s")
        except (openai.APIConnectionError, _TooLongError) as error:
            # Some releases of the package pass on what a hook raises, others say that the connection was lost.
            if any(isinstance(each, _TooLongError) for each in _causes(error)):
                return Problem("passing", f"a reply of more than {_LARGEST:,} bytes")
            if _connecting(error):
                return Problem("unreachable", f"no connection ({self.masked(_cause(error))})")
            return Problem("passing", f"the connection was lost ({self.masked(_cause(error))})")
        except openai.APIStatusError as error:
            return self._refusal(error)
        except (openai.OpenAIError, OSError) as error:
            return Problem("passing", self._quoted(f"{type(error).__name__}: {error}"))
        return self._read(raw.content)

    def _read(self, content: bytes) -> dict[str, Any] | Problem:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            return Problem("passing", f"a reply that is no JSON: {self._quoted(content.decode(errors='replace'))}")
        if isinstance(value, dict) and value.get("error") and not value.get("choices"):  # some gateways say so with 200
            return Problem("passing", f"an error in place of a reply: {self._quoted(_message(value))}")
        choices = value.get("choices") if isinstance(value, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return Problem("passing", f"a reply without choices: {self._quoted(content.decode(errors='replace'))}")
        if not isinstance(choices[0].get("message"), dict):
            return Problem("passing", f"a reply without a message: {self._quoted(content.decode(errors='replace'))}")
        # Replies are kept in files; one that echoes what it was sent must not bring the key there.
        return mask_fields(reply_fields(value), self._key)

    def _refusal(self, error: APIStatusError) -> Problem:
        status = error.status_code
        said = _message(error.body) or error.response.text
        code = str(error.code or "")
        words = f"{status}: {self._quoted(said)}" if said.strip() else f"{status} without a word"
        if status == 401:
            return Problem("key", "401")  # not its words: they like to quote the key
        if status == 403:
            return Problem("key", words)
        if status == 429 and code == "insufficient_quota":
            return Problem("quota", words)
        if status in _PASSING_STATUS or status >= 500:
            return Problem("passing", words, wait=_retry_after(error.response.headers))
        if _CONTENT_FILTER.search(code) or _CONTENT_FILTER.search(said):
            return Problem("content", words, finish_reason="content_filter")
        if _TOO_LONG.search(code) or _TOO_LONG.search(said):
            return Problem("content", words, finish_reason="context_length")
        if _NO_SUCH_MODEL.search(said) or code == "model_not_found":
            return Problem("model", words)
        if 300 <= status < 400:
            location = error.response.headers.get("location", "nowhere")
            return Problem("address", self._quoted(f"{status}, a redirect to {location}, which is not followed"))
        if status in (404, 405):
            return Problem("model" if "model" in said.lower() else "address", words)
        if _LIMIT_FIELD.search(said) and _UNSUPPORTED.search(said):
            return Problem("limit field", words)
        return Problem("request", words)

    def _quoted(self, text: str) -> str:
        text = " ".join(self.masked(text).split())
        return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"

    def masked(self, text: str) -> str:
        """`text` with every piece of the key, and whatever else looks like one, replaced by ***."""
        return mask(text, self._key)


class _TooLongError(Exception):
    """A reply has more bytes than any completion has."""


async def _read_whole(response: Any) -> None:
    """Reads a response's body up to `_LARGEST` bytes, unpacked, so that no server fills this machine's memory.

    A hook of the HTTP client, which comes before anybody else reads, also the body of an error.
    """
    body = bytearray()
    async for block in response.aiter_bytes(1 << 16):
        body += block
        if len(body) > _LARGEST:
            await response.aclose()
            raise _TooLongError
    response._content = bytes(body)  # what `aread` keeps there; it cannot read what has been read


def _message(body: Any) -> str:
    """The sentence in an error's body: {"error": {"message": …}}, {"message": …} or {"detail": …}, else all of it."""
    if isinstance(body, dict):
        for name in ("error", "message", "detail"):
            if body.get(name):
                return _message(body[name])
    if body is None:
        return ""
    return body if isinstance(body, str) else json.dumps(body, default=str)


def _connecting(error: BaseException) -> bool:
    """Whether the connection was never made."""
    # By name: the library below `openai` was httpx and is httpx2.
    return any(type(each).__name__ in ("ConnectError", "ConnectTimeout") for each in _causes(error))


def _cause(error: BaseException) -> str:
    """The innermost cause that says anything."""
    said = [str(each) for each in _causes(error) if str(each)]
    return said[-1] if said else type(error).__name__


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms` or from `Retry-After` as seconds or as a date (RFC 9110, 10.2.3)."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        return max(email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
