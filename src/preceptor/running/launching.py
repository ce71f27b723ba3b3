"""Starting the processes of a run: one for each visible GPU, under torchrun, which gets our signals and exit codes."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

_FAREWELL = 3600  # seconds that the launcher waits for processes to write a checkpoint


def processes_to_start() -> int:
    """How many processes should do the work of this one: one for each visible GPU, unless a launcher started us."""
    if "RANK" in os.environ or "LOCAL_RANK" in os.environ:
        return 1
    import torch

    return max(torch.cuda.device_count(), 1)


def launch_arguments(arguments: Sequence[str], processes: int) -> list[str]:
    """The arguments of torchrun that run `preceptor ARGUMENTS` in that many processes of this machine."""
    return ["--standalone", "--nproc_per_node", str(processes), "-m", "preceptor", *arguments]


def launch(arguments: Sequence[str]) -> int:
    """Run torchrun in this process; returns 0, or the exit code of the process that failed first.

    Signals go on to the processes, which are waited for: 130 after Ctrl-C, 143 after SIGTERM. A second one is their
    second one too.
    """
    # The processes say what is wrong; torchrun's own account of it would bury that.
    os.environ.setdefault("LOGLEVEL", "CRITICAL")
    # torchrun would kill them after half a minute, in which a step and its checkpoint need not be done.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_FAREWELL))
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {each: signal.getsignal(each) for each in signals}
    try:
        torchrun.run(torchrun.parse_args(list(arguments)))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return int(failure.exitcode) if failure.exitcode > 0 else 1
    except SignalException as stop:
        return 128 + int(stop.sigval)
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    return 0
