"""What every command of the command line consists of."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from preceptor.cli.parser import Parser


@dataclass(frozen=True)
class Command:
    """A command: how it is called, what it accepts, and what it does."""

    name: str
    summary: str
    """What it does, in half a line."""
    parser: Callable[[], Parser]
    run: Callable[[argparse.Namespace, Sequence[str]], int]
    """Given the parsed options and the words they were parsed from; returns the exit code."""
