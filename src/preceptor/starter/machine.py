"""What this machine has to train on, found without torch: the memory of its GPUs, else its own."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_QUERY = ["nvidia-smi", "--query-gpu=memory.total,compute_cap", "--format=csv,noheader,nounits"]
_AMPERE = 8.0  # compute capability from which GPUs multiply bf16


@dataclass(frozen=True)
class Machine:
    """Memory in bytes of the smallest GPU, or of the machine where `gpus` is 0; whether bf16 is fast there."""

    memory: int
    gpus: int
    bf16: bool

    @property
    def words(self) -> str:
        """Such as `a GPU here has 24 GB`."""
        where = "this machine has" if not self.gpus else "the GPU here has" if self.gpus == 1 else "a GPU here has"
        return f"{where} {size(self.memory)}"


def this_machine() -> Machine:
    """Asks the driver for its GPUs; a machine without one trains on its CPU."""
    try:
        said = subprocess.run(_QUERY, capture_output=True, text=True, timeout=10, check=True).stdout
        found = [[float(part) for part in line.split(",")] for line in said.splitlines() if line.strip()]
    except (OSError, ValueError, subprocess.SubprocessError):
        found = []
    if found and all(len(each) == 2 for each in found) and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        return Machine(int(min(each[0] for each in found) * 2**20), len(found), min(e[1] for e in found) >= _AMPERE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # a container may have less
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return Machine(memory, 0, False)


def size(count: float) -> str:
    """Bytes as `3.4 MB` or `24 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.{0 if count >= 10 * scale else 1}f} {unit}"
    return f"{max(count / 1e6, 0.1):.1f} MB"
