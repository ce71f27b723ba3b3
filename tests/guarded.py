"""A child process that notes, and refuses, whatever would leave this machine.

What Python's sockets do is noted, with where it was called from. What native code opens by itself shows in a network
namespace of the child's own, in which there is nothing but its loopback.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

SITE = """
import os, socket, traceback

_LOOPBACK = ("127.", "localhost", "::1", "0.0.0.0")
_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

def _refuse(what):
    with open(os.environ["GUARD_LOG"], "a") as log:
        log.write(f"== {what}\\n" + "".join(traceback.format_stack(limit=40)[:-2]))
    raise OSError(101, f"no network: {what}")

def _guarded(real):
    def connect(self, address):
        inet = self.family in (socket.AF_INET, socket.AF_INET6)
        if inet and not str(address[0]).startswith(_LOOPBACK):
            _refuse(f"connect {address}")
        return real(self, address)
    return connect

def getaddrinfo(host, *rest, **more):
    name = host.decode() if isinstance(host, bytes) else host
    if name and not name.startswith(_LOOPBACK) and name != socket.gethostname():
        _refuse(f"getaddrinfo {name}")
    return _getaddrinfo(host, *rest, **more)

socket.socket.connect, socket.socket.connect_ex = _guarded(_connect), _guarded(_connect_ex)
socket.getaddrinfo = getaddrinfo
"""
LOOPBACK_UP = """\
import fcntl, socket, struct
with socket.socket() as s:
    request = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
    fcntl.ioctl(s, 0x8914, request)  # SIOCSIFFLAGS
"""


def environment(folder: Path, **more: str) -> dict[str, str]:
    """As a user has it who set nothing of the Hub's, with an empty home; attempts are noted in `folder/attempts`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITE)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    for name in ("DO_NOT_TRACK", "HUGGINGFACE_HUB_CACHE", "TORCH_HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME"):
        kept.pop(name, None)
    home = folder / "home"
    home.mkdir(exist_ok=True)
    places = [str(folder), str(Path(__file__).parent), *filter(None, [kept.get("PYTHONPATH")])]
    return {
        **kept,
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join(places),
        "GUARD_LOG": str(folder / "attempts"),
        "OMP_NUM_THREADS": "1",
        **more,
    }


def attempts(folder: Path) -> str:
    """What tried to leave, with where it was called from."""
    path = folder / "attempts"
    return path.read_text() if path.exists() else ""


def child(
    program: str, arguments: Sequence[str], env: Mapping[str, str], cwd: Path, *, alone: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs a Python program; `alone`, in a network namespace where that is permitted."""
    before = ["unshare", "--net"] if alone and may_unshare() else []
    text = LOOPBACK_UP + program if before else program
    return subprocess.run(
        [*before, sys.executable, "-c", text, *arguments],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )


@cache
def may_unshare() -> bool:
    """Whether this process may have a network namespace of its own."""
    try:
        done = subprocess.run(["unshare", "--net", sys.executable, "-c", LOOPBACK_UP], capture_output=True, timeout=120)
    except OSError:
        return False
    return done.returncode == 0
