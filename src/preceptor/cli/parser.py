"""How commands read their arguments, and how they explain themselves."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from preceptor.cli.output import say
from preceptor.errors import InputError, accepted, did_you_mean

WIDTH = 78
"""Columns of help where the terminal is not narrower; its last two stay free, as argparse has it."""
_WORD = r"(?:[^\s'\"]|'[^']*'|\"[^\"]*\")+"
_UNIT = re.compile(rf"--[\w-]+ (?!-){_WORD}|{_WORD}")
"""An option with its value, or another word."""


class Parser(argparse.ArgumentParser):
    """A parser that reports wrong usage like any other wrong input."""

    def error(self, message: str) -> NoReturn:
        said = re.sub(
            r"^argument (\S+): (is )?", lambda match: f"{match[1]} is " if match[2] else f"{match[1]}: ", message
        )
        said = said.replace("expected one argument", "a value is missing")
        raise InputError(f"{self.prog}: {said}; see {self.prog} --help")

    def print_help(self, file: object = None) -> None:
        """Prints the help where a closed pipe is noticed; argparse would keep it to itself."""
        say(self.format_help().rstrip("\n"))

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The options; positional arguments may stand before, between and after them.

        Raises:
            InputError: for what the command does not accept.
        """
        options, unknown = self.parse_known_intermixed_args(arguments)
        if unknown:
            flag = unknown[0].partition("=")[0]
            known = [each for action in self._actions for each in action.option_strings]
            what = (
                f"{flag} is no option{did_you_mean(flag, known)}" if flag.startswith("-") else f"{flag!r} is too much"
            )
            self.error(what)
        return options


class _Help(argparse.RawDescriptionHelpFormatter):
    """Examples stay as they are written; all else is wrapped to the terminal, and to lines that read well."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)
        self._width = min(self._width, WIDTH)


def new_parser(name: str, usage: str, description: str, examples: Sequence[str], more: str = "") -> Parser:
    """The parser of a command, with what all commands accept; `more` is said after the examples."""
    parser = Parser(
        prog=f"preceptor {name}",
        usage=" ".join(f"preceptor {name} {usage} [options]".split()),
        description=wrapped(description),
        epilog="\n\n".join(part for part in (examples_text(examples), more) if part),
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser._positionals.title = "arguments"
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return parser


def wrapped(text: str) -> str:
    """Running text in lines of help."""
    return "\n".join(textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False))


def examples_text(commands: Sequence[str]) -> str:
    """Commands as a shell takes them, long ones on several lines."""
    lines = ["examples:"]
    for command in commands:
        line = " "
        for word in _UNIT.findall(command):
            if len(line) + 1 + len(word) > WIDTH - 2:
                lines.append(line + " \\")
                line = "     "
            line += " " + word
        lines.append(line)
    return "\n".join(lines)


OVERRIDES = """\
key=value changes any leaf of the recipe; values are YAML, items of lists count
from 0:
  seed=44   stages.kd.rows_per_step=64   stages.kd.objective.1.weight=0.5
  'stages.kd.data={shop: 0.1, general: 0.9}'"""


def recipe_parser(name: str, description: str, examples: Sequence[str], more: str = "") -> Parser:
    """The parser of a command that reads a recipe and changes to it."""
    words = "\n\n".join(part for part in (OVERRIDES, more) if part)
    parser = new_parser(name, "RECIPE [key=value …]", description, examples, words)
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a recipe, a YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="changes to the recipe, see below")
    return parser


def need_recipe(name: str, options: argparse.Namespace) -> None:
    """Makes sure that a recipe was named: what may take days is not begun because a file happens to be here.

    Raises:
        InputError: none was.
    """
    if options.recipe is not None:
        return
    command = f"preceptor {name}"
    if Path("recipe.yaml").is_file():
        raise InputError(f"{command}: no recipe is given; write {command} recipe.yaml for the one in this folder")
    raise InputError(
        f"{command}: no recipe is given; write {command} RECIPE with the path of a YAML file, and see preceptor init "
        "for a first one"
    )


class OneOf:
    """The type of an argument that is one of some words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __call__(self, text: str) -> str:
        if text not in self.words:
            raise argparse.ArgumentTypeError(
                f"is {text!r}{did_you_mean(text, self.words)}; write {accepted(self.words)}"
            )
        return text


def whole_number(text: str) -> int:
    """The type of an argument that is a whole number of at least 1."""
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"is {text!r}; write a whole number of at least 1")
    return int(text)
