"""`preceptor demo`: the whole study at pocket size."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from preceptor.cli.command import Command
from preceptor.cli.output import print_result, progress
from preceptor.cli.parser import Parser, new_parser, whole_number
from preceptor.system import live
from preceptor.system.interrupts import listening


def _parser() -> Parser:
    parser = new_parser(
        "demo",
        "",
        "The study at pocket size: a small model learns from a big one, then a domain, on a CPU, in minutes.",
        ["preceptor demo", "preceptor demo --full --seeds 5 --out study"],
    )
    parser.add_argument("--full", action="store_true", help="five seeds, with the controls and sweeps (hours)")
    parser.add_argument("--seeds", metavar="N", type=whole_number, help="how many seeds (default: 1, or 5 with --full)")
    parser.add_argument("--out", metavar="DIR", default="demo", help="where to write (default: demo)")
    return parser


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from preceptor.pocket.demo import main as demo

    with live.display(), listening(progress):  # SIGTERM too ends its workers
        result = demo(out=Path(options.out), full=options.full, seeds=options.seeds, log=progress)
    print_result(result, f"results: {options.out}", options.json)
    return 0


COMMAND = Command("demo", "see it work at pocket size, on a CPU, in minutes", _parser, _run)
