"""What `preceptor --help` prints."""

from __future__ import annotations

from collections.abc import Iterable

from preceptor.cli.command import Command
from preceptor.cli.parser import examples_text

_ABOUT = """\
usage: preceptor COMMAND …

preceptor distils a large instruct model into a small one, then teaches it a
domain without losing what it knew.

commands:"""
_EXAMPLES = [
    "preceptor demo",
    "preceptor init --teacher ./teacher --student ./student --data chats.jsonl",
    "preceptor plan recipe.yaml",
    "preceptor run recipe.yaml",
    "preceptor run recipe.yaml stages.kd.training.learning_rate=1e-5 --redo kd",
    "preceptor evaluate ./student runs/shop/dae/model --general general.jsonl",
    "preceptor report runs/shop",
]
_MORE = """\
`preceptor COMMAND --help` (or `preceptor help COMMAND`) tells more,
`preceptor --version` which one this is. Every command takes --json: its result
as one JSON object on standard output; progress goes to standard error.

exit codes:
  0    done
  1    failed while running; the message says why and how to go on
  2    the input is wrong, and nothing was written
  130  interrupted (Ctrl-C); 143 terminated (SIGTERM)"""


def overview(commands: Iterable[Command]) -> str:
    """All commands with a line for each."""
    lines = [f"  {command.name:<11} {command.summary}" for command in commands]
    return "\n".join([_ABOUT, *lines, "", examples_text(_EXAMPLES), "", _MORE])
