"""A program in a pseudo-terminal, and what a person would see there; a display without any terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from dataclasses import dataclass

from preceptor.system import live

_CODE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])")


@dataclass(frozen=True)
class Seen:
    """The bytes a program wrote to its terminal, as text, and how it ended."""

    text: str
    code: int

    def screen(self, width: int) -> list[str]:
        """The lines left on a terminal of that width and any height, as rich's few control codes leave them."""
        lines, row, column, at = [""], 0, 0, 0
        while at < len(self.text):
            if code := _CODE.match(self.text, at):
                at = code.end()
                number, letter = code.groups()
                if letter == "A":
                    row = max(row - int(number or 1), 0)
                elif letter == "K":
                    assert number == "2", code
                    lines[row] = ""
                else:
                    assert letter in "mhl", code
                continue
            character = self.text[at]
            at += 1
            if character == "\r":
                column = 0
            elif character == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            else:
                if column == width:
                    row, column = row + 1, 0
                    lines += [""] * (row + 1 - len(lines))
                lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
                column += 1
        return [line.rstrip() for line in lines]


def run_in_terminal(
    program: str,
    *,
    width: int = 80,
    stdout: int | None = None,
    environment: dict[str, str] | None = None,
    interrupt_at: str | None = None,
    patience: float = 120.0,
) -> Seen:
    """Runs Python source with its standard streams in a pseudo-terminal; Ctrl-C once `interrupt_at` has appeared."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    given = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "RANK")}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=theirs,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        env={**given, "TERM": "xterm-256color", **(environment or {})},
        start_new_session=True,
        # Children of a shell's background jobs are deaf to Ctrl-C otherwise.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    read = b""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not chunk:
                break
            read += chunk
        if interrupt_at is not None and interrupt_at.encode() in read:
            process.send_signal(signal.SIGINT)
            interrupt_at = None
    os.close(ours)
    try:
        code = process.wait(max(end - time.monotonic(), 1.0))
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Seen(read.decode(), code)


class Display(live._Display):
    """A display of bars without a terminal."""

    def __init__(self) -> None:
        self.on, self._bars, self._lock = True, [], threading.RLock()

    @property
    def shown(self) -> list[str]:
        return [f"{bar.what} | {bar.numbers} | {bar.detail}" for bar in self._bars]
