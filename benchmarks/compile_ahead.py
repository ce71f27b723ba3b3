"""Registers, spills and shared memory of every Triton kernel, compiled without a GPU.

Triton brings ptxas and cuobjdump along, so kernels can be compiled for devices that are not there. What comes out says
whether a tile fits (spilled bytes cost memory traffic in the inner loop; shared memory and registers limit how many
programs run at once), not how fast it is. Kernels are found in `preceptor.kernels`: each `*_triton` module's `ahead()`.

    python benchmarks/compile_ahead.py [WORD ...]      only modules whose name holds one of these words
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # a kernel of the interpreter cannot be compiled

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import preceptor.kernels
from preceptor.kernels.ahead import AheadSpec

ARCHITECTURES = (80, 90)  # A100; H100 and H200, for which Triton emits sm_90a
# Shared memory of one program, bytes (CUDA C++ Programming Guide, table of compute capabilities).
MOST_SHARED = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
OUT = Path(__file__).parent / "out" / "compile_ahead.json"


def registered(words: Sequence[str] = ()) -> Iterator[AheadSpec]:
    """Every kernel as it is launched, of modules whose name holds one of the words (all without words)."""
    for module in pkgutil.iter_modules(preceptor.kernels.__path__):
        if module.name.endswith("_triton") and (not words or any(word in module.name for word in words)):
            yield from importlib.import_module(f"preceptor.kernels.{module.name}").ahead()


def compiled(spec: AheadSpec, architecture: int) -> dict[str, Any]:
    """Resources of one kernel on one architecture, or `{"error"}` where it cannot be compiled."""
    source = ASTSource(spec.kernel, dict(spec.signature), dict(spec.constexprs), spec.attributes)
    options = {"num_warps": spec.num_warps, "num_stages": spec.num_stages}
    began = time.perf_counter()
    try:
        binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    except Exception as error:  # whatever the compiler says is the result
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    seconds = time.perf_counter() - began
    registers, stack, local = _resources(binary.asm["cubin"])
    shared = int(binary.metadata.shared)
    return {
        "registers": registers,
        # Triton's kernels hold no arrays: what ptxas puts on the stack or into local memory was spilled.
        "spilled_bytes": stack + local,
        "shared_bytes": shared,
        "programs_per_sm": _programs_per_sm(registers, shared, spec.num_warps, architecture),
        "seconds": round(seconds, 1),
    }


def _resources(cubin: bytes) -> tuple[int, int, int]:
    """(registers of a thread, stack bytes, local bytes) as cuobjdump reads them."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([tool, "-res-usage", str(path)], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Function (?!.*Common).*?REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", text, re.DOTALL)
    assert found, text
    return int(found[1]), int(found[2]), int(found[3])


def _programs_per_sm(registers: int, shared: int, warps: int, architecture: int) -> int:
    """How many fit on one multiprocessor by registers (64 Ki, given in units of 8 per thread) and shared memory."""
    by_registers = 65536 // (-(-registers // 8) * 8 * 32 * warps)
    room = MOST_SHARED[architecture] + 1024
    return min(by_registers, room // (shared + 1024), 2048 // (32 * warps))


def table(specs: Iterable[AheadSpec], architectures: Iterable[int] = ARCHITECTURES) -> Iterator[dict[str, Any]]:
    """One record per kernel and architecture, printed as it comes."""
    for spec in specs:
        for architecture in architectures:
            launched = {"warps": spec.num_warps, "stages": spec.num_stages}
            record = {"kernel": spec.name, "sm": architecture, **spec.note, **launched, **compiled(spec, architecture)}
            print("  ".join(f"{key} {value}" for key, value in record.items()), flush=True)
            yield record


def main() -> None:
    """Compile, print and write the table."""
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    records = list(table(registered(sys.argv[1:])))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"versions": versions, "kernels": records}, indent=1))
    print(f"wrote {OUT.relative_to(Path.cwd()) if OUT.is_relative_to(Path.cwd()) else OUT}")


if __name__ == "__main__":
    main()
