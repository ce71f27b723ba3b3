"""`preceptor plan`: says what a run would do and need, before anything is trained."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence

from preceptor.cli.command import Command
from preceptor.cli.output import print_result, progress
from preceptor.cli.parser import Parser, need_recipe, recipe_parser


def _parser() -> Parser:
    parser = recipe_parser(
        "plan",
        "Show what a recipe would run, without training and without writing anything.",
        [
            "preceptor plan recipe.yaml",
            "preceptor plan recipe.yaml --device-memory 80GB --devices 8",
            "preceptor plan recipe.yaml stages.kd.packing=true --json",
        ],
    )
    parser.add_argument(
        "--device-memory", metavar="SIZE", help="plan for GPUs of so much memory, such as 80GB (default: what is here)"
    )
    parser.add_argument("--devices", metavar="N", help="for so many devices (default: 1)")
    parser.add_argument(
        "--rate", metavar="TFLOPS", help="what a device does in a second, in 10^12 FLOP (default: measured here)"
    )
    parser.add_argument("--quick", action="store_true", help="leave out what stages need of memory, time and disk")
    return parser


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    need_recipe("plan", options)

    from preceptor.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)

    from preceptor.plan import plan, render  # after it: torch takes seconds, and a wrong key is said at once
    from preceptor.plan.options import device_of

    result = plan(recipe, log=_once(recipe.stages), device=device_of(options))
    print_result(result, render(result), options.json)
    return 0


def _once(stages: Iterable[str]) -> Callable[[str], None]:
    """Says once what several stages have to say of the same data."""
    names, said = set(stages), set[str]()

    def log(line: str) -> None:
        stage, _, rest = line.partition(": ")
        text = rest if stage in names else line
        if text not in said:
            said.add(text)
            progress(text)

    return log


COMMAND = Command(
    "plan",
    "show what would run: data, a sample row, memory, time, disk",
    _parser,
    _run,
)
