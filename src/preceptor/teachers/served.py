"""A teacher too big to load here, served by vLLM: the most probable tokens at each position of a prompt.

vLLM's completions API answers `prompt_logprobs: k` with the k most probable tokens at each position of the prompt that
it was given (as token ids), and the token that is there. Those log-probabilities are of unscaled logits whatever
temperature is asked for, so that only temperature 1 can be stored.
"""

from __future__ import annotations

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import numpy.typing as npt

from preceptor.errors import InputError, shown
from preceptor.teachers.store_files import ShardWriter
from preceptor.teachers.store_modes import TopMode
from preceptor.teachers.store_writer import StoredRow

_WORDS = 300  # characters of the server's own words in a message
_LONGEST_PAUSE = 30.0
_SAY_SECONDS = 10.0  # between two lines about attempts that failed
# The least mass the rest can have: log-probabilities are rounded by the server, and where the kept mass reaches 1 only
# rounding is left of the rest. About what float32 can tell from 1.
_LEAST_REST = 1e-7
_OTHERWISE = 0.03  # of the compared tokens, spelled otherwise by the server
_ROUNDING = 0.05  # by which a server's rounding may carry the kept mass over 1

Array = npt.NDArray[Any]


class ServedTeacher:
    """A model behind `endpoint`, an OpenAI-compatible base URL of a vLLM server.

    Args:
        endpoint: such as http://127.0.0.1:8000/v1, checked: without user name and password.
        model: its name there.
        key: sent as a bearer token, and in no message.
        hide: takes whatever could hold the key out of the server's own words.
        timeout: seconds one request may take.
        retries: further attempts after 429, 5xx, a time-out or a lost connection.
        concurrency: requests under way at once.
        log: takes a line about attempts that failed, one at a time every so often.

    Raises:
        InputError: for an address that is not http or https, or a key that no header can hold.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        key: str | None = None,
        hide: Callable[[str], str] | None = None,
        timeout: float = 120.0,
        retries: int = 12,
        concurrency: int = 8,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        if not endpoint.startswith(("http://", "https://")):
            raise InputError(f"teacher: the endpoint {shown(endpoint)} is no address; write http://HOST:PORT/v1")
        if key is not None and (not key or not key.isascii() or not key.isprintable() or " " in key):
            raise InputError(
                "teacher: its access key is empty or holds signs that no header can hold (spaces, line ends); set the "
                "variable that `key_env` names to the key alone"
            )
        self.url = f"{endpoint.rstrip('/')}/completions"
        self.model, self.concurrency = model, concurrency
        self._key, self._timeout, self._retries = key, timeout, retries
        self._hide, self._log = hide, log
        self._told = -math.inf
        self._met = False
        self._compared, self._differing = (
            0,
            0,
        )  # tokens of plain text, and those spelled otherwise there
        # A redirect would take the key along to another host.
        self._opener = urllib.request.build_opener(_NoRedirect)

    def store(self, rows: Sequence[StoredRow], mode: TopMode, writer: ShardWriter, spell: Callable[[int], str]) -> None:
        """Asks about `rows`, several at once, and gives what the teacher says at their targets to `writer`.

        Args:
            rows: what to ask about.
            mode: top tokens at temperature 1.
            writer: of the store.
            spell: a token of the student's tokenizer as text, compared with the server's.

        Raises:
            InputError: the server refuses the request, or its tokens are not the student's.
            RuntimeError: it does not answer, or with what can be no log-probabilities.
        """
        assert mode.temperature == 1.0
        # Not concurrent.futures: Ctrl-C would wait there for requests and their retries, and the process's end again.
        with ThreadPool(self.concurrency) as pool:
            answers = list(pool.imap(lambda row: self._ask(row.encoded.input_ids.tolist(), mode.kept), rows))
        for row, answer in zip(rows, answers, strict=True):
            self._check_tokens(row, answer, spell)
            taken = _taken([answer[position + 1] for position in row.positions], mode, self.url)
            writer.add(row.key, row.digest, len(row.positions), mode.pack(taken))
        writer.flush_if_due()

    def _ask(self, ids: list[int], k: int) -> list[dict[str, Any]]:
        """By position of the prompt, {token id: {"logprob", "decoded_token", …}}; nothing at the first."""
        body = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": k}
        last = ""
        for attempt in range(self._retries + 1):
            if attempt:
                pause = min(2.0 ** (attempt - 1), _LONGEST_PAUSE)
                if time.monotonic() - self._told >= _SAY_SECONDS:
                    self._told = time.monotonic()
                    self._log(f"{self.url}: {last}; attempt {attempt + 1} of {self._retries + 1} in {pause:,.0f} s")
                time.sleep(pause)
            try:
                reply = self._post(body)
            except urllib.error.HTTPError as error:
                said = self._said(error)
                if 300 <= error.code < 400:
                    raise InputError(
                        f"teacher {self.model} at {self.url}: sends requests on to another address ({error.code}), "
                        "which would be given the rows and the key; write the server's own base URL as `endpoint`"
                    ) from None
                if error.code in (401, 403):
                    raise InputError(
                        f"teacher {self.model} at {self.url}: refuses the key ({error.code}); set `key_env` to the "
                        "variable that holds it"
                    ) from None
                if error.code != 429 and error.code < 500:
                    raise InputError(
                        f"teacher {self.model} at {self.url}: refuses a row of {len(ids)} tokens ({error.code}: {said})"
                        "; start vLLM with --max-logprobs of at least `k` and a context longer than `max_length`"
                    ) from None
                last = f"{error.code}: {said}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                # No connection, a time-out, a reply that is cut short or no JSON.
                last = self._masked(f"{type(error).__name__}: {error}")
                if not self._met and isinstance(getattr(error, "reason", None), ConnectionRefusedError):
                    raise InputError(
                        f"teacher {self.model} at {self.url}: nobody is there ({last}); start the server, or set "
                        "`endpoint` to the URL of one that runs"
                    ) from None
            else:
                self._met = True
                return self._read(reply, len(ids))
        raise RuntimeError(f"teacher {self.model} at {self.url} does not answer ({last})")

    def _post(self, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with self._opener.open(request, timeout=self._timeout) as reply:
            return json.load(reply)

    def _read(self, reply: Any, count: int) -> list[dict[str, Any]]:
        try:
            said = reply["choices"][0]["prompt_logprobs"]
        except (KeyError, IndexError, TypeError):
            said = None
        if not isinstance(said, list) or len(said) != count or not all(map(_is_position, said)):
            raise InputError(
                f"teacher {self.model} at {self.url}: answers without `prompt_logprobs` for each token of the prompt; "
                "serve it with vLLM's OpenAI-compatible server"
            )
        return [each or {} for each in said]

    def _check_tokens(self, row: StoredRow, answer: list[dict[str, Any]], spell: Callable[[int], str]) -> None:
        """Makes sure that the server means the same tokens: by their text, where that is plain."""
        differ = []
        for position, token in enumerate(row.encoded.input_ids.tolist()):
            ours = spell(token).strip()
            theirs = answer[position].get(str(token), {}).get("decoded_token")
            if position and theirs is not None and ours.isascii() and ours.isalnum():
                self._compared += 1
                # Tokenizers mark a leading space in their own ways.
                if ours != str(theirs).strip(" \u2581\u0120"):
                    differ.append((token, ours, theirs))
        self._differing += len(differ)
        # A few may be spelled in a way of their own; tokenizers that agree on most of their tokens are still two.
        if differ and self._differing > max(2, _OTHERWISE * self._compared):
            token, ours, theirs = differ[0]
            raise InputError(
                f"teacher {self.model} at {self.url}: token {token} is {shown(self._masked(str(theirs)))} there and "
                f"{shown(ours)} in the student's tokenizer; distil between models of one tokenizer"
            )

    def _said(self, error: urllib.error.HTTPError) -> str:
        """The server's own words, as far as they come."""
        try:
            return self._masked(error.read(4096).decode(errors="replace"))
        except (OSError, http.client.HTTPException):
            return "without a whole word"

    def _masked(self, text: str) -> str:
        if self._hide is not None:
            text = self._hide(text)
        if self._key is not None:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:_WORDS]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _is_position(said: Any) -> bool:
    """Whether this can be what vLLM says of one position: {token id: {"logprob": …}}, or nothing."""
    return said is None or (isinstance(said, dict) and all(isinstance(each, dict) for each in said.values()))


def _taken(positions: Sequence[Mapping[str, Any]], mode: TopMode, url: str) -> tuple[Array, Array, Array]:
    """What `TopMode.take` gives of logits, of a server's answers: ids, log-probabilities, log of the rest's mass."""
    K = mode.kept
    ids = np.zeros((len(positions), K), dtype=np.int32)
    log_probs = np.zeros((len(positions), K))
    for i, said in enumerate(positions):
        found = sorted((_log_prob(token, each, url) for token, each in said.items()), reverse=True)[:K]
        if len(found) < K or any(token >= mode.vocabulary for _, token in found):
            raise InputError(
                f"teacher at {url}: gives {len(found)} tokens of {K} at a position, or tokens beyond the student's "
                f"{mode.vocabulary:,}; start vLLM with --max-logprobs {K}, and give a student of its tokenizer"
            )
        log_probs[i], ids[i] = zip(*found, strict=True)
    mass = np.exp(log_probs).sum(1)
    if bool((mass > 1 + _ROUNDING).any()):
        raise RuntimeError(
            f"teacher at {url}: the probabilities it gives at a position sum to {mass.max():.3g}, and those of one "
            "distribution to no more than 1; see whether it serves log-probabilities of unscaled logits"
        )
    log_tail = np.log(np.maximum(1 - mass, _LEAST_REST))
    return ids, np.maximum(log_probs, -65504.0).astype(np.float16), log_tail.astype(np.float32)


def _log_prob(token: str, said: Mapping[str, Any], url: str) -> tuple[float, int]:
    """A token's log-probability and its id. Raises RuntimeError for what can be none."""
    value = said.get("logprob")
    # NaN is in no order. A server's rounding may put a certain token a little above 0.
    good = isinstance(value, int | float) and not isinstance(value, bool) and value <= math.log(1 + _ROUNDING)
    if not good or not (token.isascii() and token.isdigit()):
        raise RuntimeError(
            f"teacher at {url}: gives {shown(value)} as the log-probability of token {shown(token)}, which is no "
            "log-probability of a token id; look at what is served there"
        )
    assert isinstance(value, int | float)
    return min(float(value), 0.0), int(token)
