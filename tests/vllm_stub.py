"""A local server that answers completions with `prompt_logprobs` as vLLM does, of a model in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

Reply = tuple[int, dict[str, Any]]


class Stub:
    """What the server answers, and what it was asked.

    `fails` are replies given first, one to each request; `max_logprobs` is the server's own limit; of the first `cut`
    replies only half is sent. `heard` counts requests of any kind.
    """

    def __init__(self, model: torch.nn.Module, spell: Callable[[int], str], *, max_logprobs: int = 1000) -> None:
        self.model, self.spell, self.max_logprobs = model, spell, max_logprobs
        self.fails: list[Reply] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url, self.cut, self.heard = "", 0, 0
        self._lock = threading.Lock()

    def answer(self, body: dict[str, Any], key: str | None) -> Reply:
        with self._lock:
            self.asked.append(body)
            self.keys.append(key)
            if self.fails:
                return self.fails.pop(0)
            k, ids = body["prompt_logprobs"], body["prompt"]
            if k > self.max_logprobs:
                said = f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.max_logprobs}"
                return 400, {"error": {"message": said, "code": 400}}
            with torch.no_grad():
                log_p = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            said_at: list[Any] = [None]
            for position in range(len(ids) - 1):
                # The k most probable, and the token that is there: k + 1 entries where it is none of them.
                tokens = [*log_p[position].topk(k).indices.tolist(), ids[position + 1]]
                order = log_p[position].argsort(descending=True).tolist()
                said_at.append(
                    {
                        str(token): {
                            "logprob": float(log_p[position, token]),
                            "rank": order.index(token) + 1,
                            "decoded_token": self.spell(token),
                        }
                        for token in tokens
                    }
                )
            choice = {"index": 0, "text": "x", "finish_reason": "length", "logprobs": None, "prompt_logprobs": said_at}
            return 200, {"object": "text_completion", "model": body["model"], "choices": [choice]}


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """The stub at `stub.url` as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stub.heard += 1
            self.send_error(405)

        def do_POST(self) -> None:
            stub.heard += 1
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/completions"
            status, reply = stub.answer(body, self.headers.get("Authorization"))
            data = json.dumps(reply).encode()
            self.send_response(status)
            if status in (301, 302, 307):
                self.send_header("Location", str(reply["to"]))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if stub.cut:
                stub.cut -= 1
                data = data[: len(data) // 2]
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
