"""`preceptor completion`: the script with which a shell completes commands, options, files and stages.

It is made from the parsers, so that it knows what they know; and it is the shell's own, so that no Python starts when
somebody presses Tab.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from preceptor.cli.command import Command
from preceptor.cli.output import print_result
from preceptor.cli.parser import OneOf, Parser, new_parser

SHELLS = ("bash", "zsh", "fish")
_MORE = """\
To have it in every shell, add to its start-up file:
  bash   eval "$(preceptor completion bash)"    in ~/.bashrc
  zsh    eval "$(preceptor completion zsh)"     in ~/.zshrc, after compinit
  fish   preceptor completion fish | source     in ~/.config/fish/config.fish"""


def _parser() -> Parser:
    parser = new_parser(
        "completion",
        "bash|zsh|fish",
        "Print the script with which a shell completes commands, options, files and the stages of a recipe.",
        [f"preceptor completion {shell}" for shell in SHELLS],
        _MORE,
    )
    parser.add_argument("shell", metavar="bash|zsh|fish", type=OneOf(*SHELLS), help="which shell")
    return parser


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from preceptor.cli.commands import COMMANDS
    from preceptor.cli.completion_scripts import script

    text = script(options.shell, list(COMMANDS.values()))
    print_result({"shell": options.shell, "script": text}, text, options.json)
    return 0


COMMAND = Command("completion", "what your shell needs to complete preceptor's words", _parser, _run)
