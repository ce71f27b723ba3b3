"""`preceptor report`: one page from run directories."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from preceptor.cli.command import Command
from preceptor.cli.output import PAGE, print_result, progress
from preceptor.cli.parser import Parser, new_parser
from preceptor.errors import InputError


def _parser() -> Parser:
    parser = new_parser(
        "report",
        "RUN …",
        "One page from run directories, finished or not: report.html (needs no network), report.json and figures/.",
        [
            "preceptor report runs/shop",
            "preceptor report runs/shop-43 runs/shop-44 --out compared",
            'preceptor report runs --published --title "All trials"',
        ],
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run directory, one stage of it, or a folder of runs")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: RUN/report, or report for several runs)")
    parser.add_argument("--title", metavar="TEXT", help="title of the page (default: the names of the runs)")
    parser.add_argument(
        "--published",
        action="store_true",
        help="add figures that others have published, as rows that name their source",
    )
    return parser


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    if not options.runs:
        raise InputError("preceptor report: no run is given; write preceptor report RUN with a run's directory")
    runs = [Path(run) for run in options.runs]
    if not options.out and len(runs) == 1 and (runs[0] / "report").is_symlink():
        # In a run from a stranger it may lead anywhere; who wants it there can say so.
        raise InputError(
            f"report: {runs[0] / 'report'} is a symbolic link; say where to write with --out, as in "
            f"--out {(runs[0] / 'report').resolve()}"
        )
    out = Path(options.out) if options.out else runs[0] / "report" if len(runs) == 1 else Path("report")

    from preceptor.report import write_report
    from preceptor.report.table import table

    result = write_report(runs, out, title=options.title, published=options.published, log=progress)
    print_result(result, f"{table(result)}\n{out / PAGE}", options.json)
    return 0


COMMAND = Command("report", "one page of what was learned, gained and forgotten", _parser, _run)
