"""`preceptor store`: looks at stored predictions of a teacher."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from preceptor.cli.command import Command
from preceptor.cli.output import print_result
from preceptor.cli.parser import OneOf, Parser, new_parser
from preceptor.errors import InputError


def _parser() -> Parser:
    parser = new_parser(
        "store",
        "info|verify DIR",
        "Look at the predictions that a `store` stage wrote: `info` reads the manifest, `verify` every byte.",
        ["preceptor store info runs/shop/said/store", "preceptor store verify runs/shop/said/store --json"],
    )
    parser.add_argument("what", metavar="info|verify", type=OneOf("info", "verify"), help="what to do")
    parser.add_argument("folder", metavar="DIR", help="the folder of a store")
    return parser


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    if not Path(options.folder).is_dir():  # said at once: what comes next takes seconds to import
        raise InputError(f"store {options.folder!r}: there is no such folder; give one that a `store` stage wrote")

    from preceptor.teachers.store_report import info, render_info, render_verify, verify

    read, render = (info, render_info) if options.what == "info" else (verify, render_verify)
    result = read(Path(options.folder))
    print_result(result, render(result), options.json)
    return 0


COMMAND = Command("store", "what a stored teacher holds, and whether it is whole", _parser, _run)
