"""An OpenAI-compatible chat endpoint in a thread, that says and does what a test tells it to.

with StubEndpoint() as stub:
    stub.answer = lambda body: "[[7]]"                         # text or a Step, from the request's JSON body
    stub.script(error(429, retry_after=0.1), reset(), say("8")) # the next requests, in order of arrival
    ... EndpointSpec(endpoint=stub.url, model="stub") ...
    assert len(stub.requests) == 4                             # bodies as received, scripted ones too
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Step:
    """What is done with one request: wait `delay` seconds, then answer, `drip` seconds between any two bytes."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0
    reset: bool = False
    """Break the connection instead of answering."""
    cut: bool = False
    """Break the connection after half of the body."""

    def after(self, seconds: float) -> Step:
        return replace(self, delay=seconds)

    def dripping(self, seconds: float) -> Step:
        return replace(self, drip=seconds)


def say(
    text: str | None,
    *,
    finish_reason: str | None = "stop",
    logprobs: Sequence[Mapping[str, float]] | None = None,
    usage: tuple[int, int] | None = (10, 5),
    model: str = "stub-2026",
) -> Step:
    """A completion. `logprobs` has the top log-probabilities of each token; `usage` is prompt and completion tokens."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish_reason,
        "logprobs": None,
    }
    if logprobs is not None:
        choice["logprobs"] = {"content": [_token(each) for each in logprobs]}
    body: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice]}
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return answering(body)


def _token(top: Mapping[str, float]) -> dict[str, Any]:
    listed = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in top.items()]
    return {**listed[0], "top_logprobs": listed}


def answering(body: Any) -> Step:
    """200 with any JSON value."""
    return Step(body=json.dumps(body).encode())


def error(status: int, message: str = "refused", *, retry_after: float | str | None = None) -> Step:
    """An error in OpenAI's shape."""
    body = json.dumps({"error": {"message": message, "type": "stub", "param": None, "code": None}}).encode()
    return Step(status, body, {} if retry_after is None else {"Retry-After": str(retry_after)})


def malformed() -> Step:
    """200 whose body is no JSON."""
    return Step(body=b'{"choices": [{"mess')


def reset() -> Step:
    """The connection breaks before anything is answered."""
    return Step(reset=True)


class StubEndpoint:
    """Serves `POST /v1/chat/completions` on a free port of 127.0.0.1, or on `port`, while its `with` block runs.

    `answer` takes the request's body and gives text or a Step; steps given to `script` come first, one per request.
    `requests` holds the bodies received, `headers` their headers (names in lower case), `most_at_once` how many were
    under way together.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], str | Step] = lambda body: "ok", port: int = 0) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self.closing = threading.Event()
        self._scripted: deque[Step] = deque()
        self._lock = threading.Lock()
        self._under_way = 0
        self._server = _Server(self, port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def script(self, *steps: Step) -> None:
        with self._lock:
            self._scripted.extend(steps)

    def __enter__(self) -> StubEndpoint:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def begin(self, body: dict[str, Any], headers: dict[str, str]) -> Step:
        with self._lock:
            self.requests.append(body)
            self.headers.append(headers)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
            scripted = self._scripted.popleft() if self._scripted else None
        step = scripted if scripted is not None else self.answer(body)
        return say(step) if isinstance(step, str) else step

    def end(self) -> None:
        with self._lock:
            self._under_way -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, stub: StubEndpoint, port: int) -> None:
        self.stub = stub
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_POST(self) -> None:
        stub = self.server.stub
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        step = stub.begin(body, {name.lower(): value for name, value in self.headers.items()})
        try:
            if self.path != "/v1/chat/completions":
                step = error(404, f"no such path: {self.path}")
            stub.closing.wait(step.delay)
            self._do(step)
        finally:
            stub.end()

    def _do(self, step: Step) -> None:
        if step.reset:
            self._break()
            return
        self.send_response(step.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(step.body)))
        for name, value in step.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if step.cut:
            self.wfile.write(step.body[: len(step.body) // 2])
            self._break()
        elif step.drip:
            for i in range(len(step.body)):
                self.wfile.write(step.body[i : i + 1])
                self.server.stub.closing.wait(step.drip)
        else:
            self.wfile.write(step.body)

    def _break(self) -> None:
        """A reset, not an orderly end: linger 0 makes the kernel send RST."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
