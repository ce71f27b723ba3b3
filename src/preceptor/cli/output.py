"""What commands print: results on standard output, all else on standard error."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from preceptor.distributed import is_main
from preceptor.errors import printable
from preceptor.system.files import json_text

PAGE = "report.html"
_NARROW = 20
"""Columns below which a terminal is no place to break lines for."""
_SPARED = (re.compile(r"(?<=\d)  grad norm \S+"), re.compile(r"(?<=\d)  \d+ targets/s"))
"""Figures of a step that a narrow terminal goes without, in this order; the log file has them all."""


def progress(line: str) -> None:
    """Says how things go on. A log on a full disk, or a reader that is gone, is no reason to stop what goes on."""
    with suppress(OSError):
        print(fitted(printable(line, keep="\n\t"), sys.stderr), file=sys.stderr, flush=True)


def fitted(text: str, stream: TextIO) -> str:
    """The text broken at its words where `stream` is a terminal, which would break it anywhere; else as it is."""
    try:
        if not stream.isatty():
            return text
        width = int(os.environ.get("COLUMNS") or os.get_terminal_size(stream.fileno()).columns)
    except (AttributeError, ValueError, OSError):  # somebody's own object, or closed
        return text
    return "\n".join(piece for line in text.split("\n") for piece in _pieces(line, width))


def _pieces(line: str, width: int) -> list[str]:
    for figure in _SPARED:
        if len(line) > width:
            line = figure.sub("", line, count=1)
    if len(line) <= width or width < _NARROW:
        return [line]
    indent = line[: len(line) - len(line.lstrip())] + "  "
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def say(text: str) -> None:
    """Prints what was asked for."""
    print(text, flush=True)


def print_result(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Prints what a command came to: `result` as JSON, or `text` for a person."""
    if is_main():
        print(printable(json_text(result) if as_json else text, keep="\n\t"), flush=True)


def fail(code: int, errors: Sequence[str], as_json: bool) -> int:
    """Says what went wrong, and returns `code`."""
    for error in errors:
        line = printable(error if code > 128 else f"error: {error}", keep="\n")
        print(fitted(line, sys.stderr), file=sys.stderr)
    if as_json and is_main():
        print(json_text({"exit_code": code, "errors": list(errors)}))
    return code


def print_run(result: dict[str, Any], as_json: bool) -> None:
    """What each stage came to; and the page of the run, without which the run is no less done."""
    if not is_main():
        return
    folder = Path(result["directory"])
    page = folder / "report" / PAGE
    if not page.exists() or any(stage["status"] == "done" for stage in result["stages"].values()):
        from preceptor.report import write_report

        try:
            write_report([folder], page.parent, log=progress)
        except Exception as error:  # whatever a damaged file does to the report, the run is done
            progress(f"no report was written ({error}); preceptor report {folder} tries again")
    lines = [f"{name}  {stage['status']}  {stage['seconds']:.1f} s" for name, stage in result["stages"].items()]
    if page.exists():
        result["report"] = str(page)
        lines.append(f"report: {page}")
    print_result(result, "\n".join([*lines, result["directory"]]), as_json)
