"""What the commands accept, read from their parsers: the one source of what a shell completes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from preceptor.cli.command import Command
from preceptor.cli.parser import OneOf

Value = Literal["file", "folder", "stage", "word", "free", "none"]
_BY_METAVAR: dict[str, Value] = {
    "DATA": "file",
    "DIR": "folder",
    "FILE": "file",
    "FOLDER": "folder",
    "MODEL": "folder",
    "RECIPE": "file",
    "RUN": "folder",
    "STAGE": "stage",
    "[NAME=]MODEL": "folder",
}


@dataclass(frozen=True)
class Accepted:
    """An option, or (without `flags`) a positional argument.

    `value` is what follows: nothing ("none"), a file, a folder, a stage of the recipe, one of `words`, or anything.
    """

    flags: tuple[str, ...]
    help: str
    value: Value
    words: tuple[str, ...]
    name: str
    repeats: bool


def described(command: Command) -> list[Accepted]:
    """Everything that a command accepts, in the order in which it explains it."""
    return [_accepted(action) for action in command.parser()._actions]


def _accepted(action: argparse.Action) -> Accepted:
    words = action.type.words if isinstance(action.type, OneOf) else ()
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    value: Value = "none" if action.nargs == 0 else "word" if words else _BY_METAVAR.get(metavar, "free")
    repeats = action.nargs == "*" or isinstance(action, argparse._AppendAction)
    text = (action.help or "").replace("%%", "%")
    return Accepted(tuple(action.option_strings), text, value, words, metavar, repeats)


def options_of(accepted: Iterable[Accepted]) -> list[Accepted]:
    """The options among them."""
    return [each for each in accepted if each.flags]


def positionals_of(accepted: Iterable[Accepted]) -> list[Accepted]:
    """The positional arguments among them."""
    return [each for each in accepted if not each.flags]
