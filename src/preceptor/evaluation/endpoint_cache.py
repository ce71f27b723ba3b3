"""The replies of an endpoint on disk, so that a run that was killed asks for none of them again.

A line is one reply, written and flushed to the disk before anybody sees it. The file is only ever appended to, so that
a kill in the middle can damage nothing but the last line, which then counts as not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from preceptor.errors import InputError
from preceptor.evaluation.endpoint_reply import is_reply
from preceptor.system.disk import FULL, DiskFull
from preceptor.system.exclusive import hold, let_go
from preceptor.system.files import json_text, sha256_json


def cache_key(endpoint: str, body: Mapping[str, Any]) -> str:
    """The SHA-256 over the endpoint's URL and everything that is sent to it, the model's name included.

    The access key is no part of it: who pays does not change a reply.
    """
    return sha256_json({"endpoint": endpoint, "body": body})


class EndpointCache:
    """Replies by key, as JSON objects; one process at a time holds the file, while its `with` block runs.

    A file that does not exist yet is made with the first reply, so that wrong input leaves nothing behind.

    Raises:
        InputError: another process holds the file, or it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unreadable = 0
        """Lines before the last that hold no reply; what they held is asked for again."""
        self._replies: dict[str, dict[str, Any]] = {}
        self._handle = -1

    def __enter__(self) -> EndpointCache:
        if self.path.exists():
            self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle >= 0:
            let_go(self._handle)
            self._handle = -1

    def get(self, key: str) -> dict[str, Any] | None:
        return self._replies.get(key)

    def add(self, key: str, reply: Mapping[str, Any]) -> None:
        """Keeps a reply; when this returns, it is on the disk."""
        if self._handle < 0:
            self._open()
        line = json_text({"key": key, "reply": reply}, indent=None).encode() + b"\n"
        before = os.fstat(self._handle).st_size
        try:
            rest = line
            while rest:  # a full disk or a signal may take a part of it only
                rest = rest[os.write(self._handle, rest) :]
            os.fsync(self._handle)
        except OSError as error:
            # Other requests are under way, and their replies would follow on what was written of this one.
            os.ftruncate(self._handle, before)
            if error.errno in FULL:
                raise DiskFull(error.errno, self.path, len(line)) from None
            raise
        self._replies[key] = dict(reply)

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                hold(handle)  # the run directory's own lock says where a file system has none
            except OSError:
                os.close(handle)
                raise
        except BlockingIOError:
            raise InputError(
                f"{self.path}: the cache of replies is in use by another process; wait until it ends, "
                "or write the results to another folder"
            ) from None
        except OSError as error:
            if error.errno in FULL:
                raise DiskFull(error.errno, self.path, 0) from None
            raise InputError(
                f"{self.path}: the cache of replies cannot be written ({error.strerror}); "
                "make it writable, or write the results to another folder"
            ) from None
        self._handle = handle
        self._load()

    def _load(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._handle, whole)
        # Not splitlines(): replies may hold line separators other than \n.
        for line in data[:whole].split(b"\n")[:-1]:
            try:
                entry = json.loads(line)
                key, reply = str(entry["key"]), entry["reply"]
            except (ValueError, KeyError, TypeError, RecursionError):
                self.unreadable += 1
                continue
            if is_reply(reply):
                self._replies[key] = reply
            else:
                self.unreadable += 1
