"""A model behind a real local server: `transformers serve`, as a process of its own.

with served(path, tmp_path) as url: ...  # url ends in /v1; the model's name there is str(path)
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 240.0


@contextmanager
def served(model: Path, folder: Path) -> Iterator[str]:
    """Serves `model` on a free port of 127.0.0.1; `folder` takes the server's log and its empty Hub cache."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "home" / "hub").mkdir(parents=True)  # it asks there what models there are
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
        environment.pop(name, None)
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", str(model), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            until = time.monotonic() + START_SECONDS
            while not _healthy(port):
                assert server.poll() is None, f"the server has ended:\n{log.read_text(errors='replace')[-2000:]}"
                assert time.monotonic() < until, f"no server:\n{log.read_text(errors='replace')[-2000:]}"
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(10)


def _healthy(port: int) -> bool:
    # Not through a proxy, whatever the environment says.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
