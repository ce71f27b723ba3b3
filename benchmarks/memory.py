"""Peak memory of one training step on a CPU, above what the models themselves hold.

Each case runs in a process of its own, so that nothing an earlier case left in the allocator counts.
Before the baseline is read, the parameters exist and a tiny step has been run (libraries loaded, thread
pools started). On Linux the kernel's own high-water mark is used: it is reset by writing 5 to
/proc/self/clear_refs and read from VmHWM after the step, so no peak is missed. Elsewhere, or where that
file may not be written, the resident size is sampled every millisecond. Gradients of the parameters are
part of the peak; optimiser states are not.

    python benchmarks/memory.py CASE S B        prints one JSON object
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

MEGABYTE = 1e6


def in_fresh_process(case: str, S: int, B: int) -> dict[str, float | str]:
    """`{"peak_mb", "by"}` of one step of a case.

    Raises:
        RuntimeError: the process failed; its last line of error is the message.
    """
    command = [sys.executable, str(Path(__file__)), case, str(S), str(B)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(lines[-1])
    result: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return result


def peak_above_baseline(step: Callable[[], None]) -> dict[str, float | str]:
    """Run one step and return its peak above the resident size before it, in MB (1e6 bytes)."""
    gc.collect()
    _return_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _sampled(step)
    before = _status("VmRSS")
    step()
    return {"peak_mb": (_status("VmHWM") - before) / MEGABYTE, "by": "VmHWM"}


def _status(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _sampled(step: Callable[[], None]) -> dict[str, float | str]:
    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        step()
    finally:
        done.set()
        thread.join()
    return {"peak_mb": (peak - before) / MEGABYTE, "by": "sampled"}


def _return_freed_memory() -> None:
    """Give freed pages back to the system (glibc keeps them), so that the baseline is what is in use."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def main() -> None:
    """Measure the case named on the command line."""
    from cases import CASES, Shape

    case, S, B = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    shape = Shape(S=S, B=B)
    # Warm up on the smallest models and rows: it must not leave memory of its own that the step could reuse.
    CASES[case](replace(shape, S=8, vocabulary=64, layers=1, width=16, intermediate=16, query_heads=2,
                        key_value_heads=2))()  # fmt: skip
    print(json.dumps(peak_above_baseline(CASES[case](shape))))


if __name__ == "__main__":
    main()
