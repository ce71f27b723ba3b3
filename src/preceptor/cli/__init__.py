"""The command line: `main` finds the command, runs it, and turns what it raises into an exit code.

Each command has a file of its own here, and imports heavy modules inside its functions, so that all of this starts
at once. Results go to standard output (one JSON object with `--json`), progress to standard error.
Exit codes: 0 done; 2 the input is wrong, nothing was written; 1 it failed while running; 130 or 143
interrupted, by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import errno
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from preceptor import __version__
from preceptor.cli.commands import COMMANDS
from preceptor.cli.output import fail, say
from preceptor.cli.streams import drop_output, steady
from preceptor.cli.top import overview
from preceptor.distributed import LeaderEnded, is_main
from preceptor.errors import InputError, InputErrors, RunFailed, accepted, did_you_mean
from preceptor.system.disk import full_disk
from preceptor.system.interrupts import Interrupted
from preceptor.system.secret_text import secret_in

_SURROUNDINGS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE})
"""Errors of files that are no mistake of ours."""
_HELP, _VERSION = ("-h", "--help", "help"), ("--version",)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    steady()
    _quiet_libraries()
    try:
        return _dispatch(arguments)
    except InputErrors as error:
        return fail(2, error.errors, as_json)
    except InputError as error:
        return fail(2, [str(error)], as_json)
    except RunFailed as error:
        return fail(1, [str(error)], as_json)
    except LeaderEnded as end:
        return end.code
    except BrokenPipeError:  # `preceptor plan … | head`
        drop_output()
        return 1
    except OSError as error:
        if error.errno not in _SURROUNDINGS:
            raise
        cause = full_disk(error, Path()) or f"{error.filename or 'a file'}: {error.strerror}"
        if error.filename is None:
            drop_output()
            cause = f"standard output cannot be written ({error.strerror})"
        return fail(1, [f"{cause}; mend that, and run the same command again"], as_json and error.filename is not None)
    except KeyboardInterrupt as stop:
        code = stop.code if isinstance(stop, Interrupted) else 130
        return fail(code, [str(stop) or "interrupted"] if is_main() else [], as_json)


def _quiet_libraries() -> None:
    """Keeps from the user what libraries tell those who program with them; `python -W` has it all."""
    if not sys.warnoptions:
        for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", category)
    # Imported along with PEFT, it recommends a kernel from the Hub to whoever runs anything on certain CPUs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # And would fetch and run it where the package `kernels` is: its import fails. `network` does so for Python.
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]


def _dispatch(arguments: list[str]) -> int:
    for argument in arguments:
        if (what := secret_in(argument)) is not None:
            raise InputError(
                f"preceptor: an argument holds {what}, which a list of processes, a shell's history and our messages "
                "would show; take it out, and name the environment variable that holds it (--judge-key-env, or "
                "`key_env` of an endpoint)"
            )
    first, *rest = arguments or ["--help"]
    if first in _VERSION:
        say(f"preceptor {__version__}")
        return 0
    if first in _HELP and (first != "help" or not rest):
        say(overview(COMMANDS.values()))
        return 0
    if first == "help":
        first, rest = rest[0], ["--help"]
    if first.startswith("-"):
        raise InputError(
            f"preceptor: {first} needs a command before it; write {accepted(COMMANDS)} first, and see preceptor --help"
        )
    if first not in COMMANDS:
        raise InputError(
            f"preceptor: {first!r} is no command{did_you_mean(first, COMMANDS)}; "
            f"write {accepted(COMMANDS)}, and see preceptor --help"
        )
    command = COMMANDS[first]
    try:
        options = command.parser().read(rest)
    except SystemExit:  # --help
        return 0
    return command.run(options, rest)
