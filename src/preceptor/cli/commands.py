"""All commands, in the order in which somebody new meets them."""

from __future__ import annotations

from preceptor.cli import completion, demo, evaluate, init, plan, report, run, store
from preceptor.cli.command import Command

COMMANDS: dict[str, Command] = {
    module.COMMAND.name: module.COMMAND for module in (demo, init, plan, run, evaluate, report, store, completion)
}
