"""Everything that one GPU can show, in one call of at most nine minutes.

    python benchmarks/gpu.py                    one GPU of 141 GB
    python benchmarks/gpu.py --rehearse         the same on a CPU, tiny, in two minutes
    python benchmarks/gpu.py --sections attention steps --minutes 4

Sections run one after another, each in a process of its own (a kernel that breaks its device must not break the
rest), each with a time by which it ends; what one does not use is the next one's. Rows go to gpu.json as they are
measured, and the tables of docs/benchmarks.md are printed at the end. It needs torch, transformers and triton; peers
(Liger, TRL) and quantisers (bitsandbytes, torchao) are measured where they can be imported.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SECONDS = {"environment": 60, "checks": 90, "attention": 110, "steps": 175, "linear": 75, "plan": 30}
"""Sections in order, and how much of nine minutes each may take; the first imports of a fresh machine are slow."""
PACKAGES = ("torch", "transformers", "triton", "accelerate", "bitsandbytes", "torchao", "liger-kernel", "trl")


def prepare(rehearse: bool) -> None:
    """Make preceptor and the modules beside this file importable, and let kernels be interpreted when rehearsing."""
    for folder in (HERE, HERE.parent / "src"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    if rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
        os.environ.setdefault("PRECEPTOR_KERNELS", "triton")  # in whole steps too, as on a GPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def schedule(sections: list[str], seconds: float) -> dict[str, float]:
    """By when each section must end, in seconds from the start."""
    whole = sum(SECONDS[name] for name in sections)
    ends, elapsed = {}, 0.0
    for name in sections:
        elapsed += SECONDS[name] / whole * seconds
        ends[name] = elapsed
    return ends


def run_section(name: str, out: Path, until: float, *, rehearse: bool) -> None:
    """Measure one section in this process; an error goes into the file and no further."""
    prepare(rehearse)
    import torch

    from gpu_clock import Clock, Deadline
    from gpu_report import Report

    report = Report(out / "gpu.json")
    try:
        if rehearse:
            torch.set_num_threads(min(2, torch.get_num_threads()))
        clock = Clock(torch.device("cpu" if rehearse else "cuda"))
        if name == "environment":
            report.add(name, environment(clock, rehearse=rehearse))
            return
        measured = report.rows("environment")
        rate = measured[0]["matmul_tflops"] if measured else None
        module = importlib.import_module(f"gpu_{name}")
        module.run(report, clock, Deadline(until), rehearse=rehearse, rate=rate)
    except Exception:
        print(traceback.format_exc(), file=sys.stderr, flush=True)
        report.failed(name, traceback.format_exc())


def environment(clock: Any, *, rehearse: bool) -> dict[str, Any]:
    """Hardware, versions, and the rate of a bfloat16 matrix product on random data: what shares are shares of."""
    import torch

    size, rounds = (64, 2) if rehearse else (8192, 20)
    a, b = (torch.randn(size, size, device=clock.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    for _ in range(3):
        torch.mm(a, b, out=out)
    seconds = statistics.median(clock.seconds(lambda: torch.mm(a, b, out=out)) for _ in range(rounds))
    cuda = clock.device.type == "cuda"
    properties = torch.cuda.get_device_properties(clock.device) if cuda else None
    return {
        "device": properties.name if properties else platform.processor() or platform.machine(),
        "memory_gb": properties.total_memory / 1e9 if properties else None,
        "multiprocessors": properties.multi_processor_count if properties else None,
        "driver": _driver() if cuda else None,
        "cuda": torch.version.cuda,
        "rehearsed": rehearse,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "matmul_size": size,
        "matmul_rounds": rounds,
        "matmul_tflops": 2 * size**3 / seconds / 1e12,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def run_all(sections: list[str], out: Path, seconds: float, *, rehearse: bool) -> None:
    """Each section in a process of its own, ended at the time it was given and a little grace."""
    from gpu_report import Report

    begun, ends = time.time(), schedule(sections, seconds)
    for name in sections:
        until = begun + ends[name]
        print(f"{time.time() - begun:5.0f} s  {name}, until {ends[name]:.0f} s", file=sys.stderr, flush=True)
        command = [sys.executable, str(HERE / "gpu.py"), "--child", name, str(until), "--out", str(out)]
        try:
            code = in_group([*command, *(["--rehearse"] if rehearse else [])], max(1.0, until - time.time() + 10))
        except subprocess.TimeoutExpired:
            Report(out / "gpu.json").failed(name, "did not end in time; what it had measured is kept")
            continue
        if code:
            Report(out / "gpu.json").failed(name, f"its process ended with {code}; what it had measured is kept")


def in_group(command: list[str], seconds: float) -> int:
    """The exit code of a command, which is ended with all processes it started: none may disturb the next section.

    Raises:
        subprocess.TimeoutExpired: after so many seconds.
    """
    process = subprocess.Popen(command, preexec_fn=os.setpgrp)
    try:
        return process.wait(seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables; 0 when every section ended and every check passed, else 1."""
    parser = argparse.ArgumentParser(description="Kernels and whole steps on one GPU, in one call.")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all sections together (default 9)")
    parser.add_argument("--sections", nargs="+", choices=list(SECONDS), default=list(SECONDS))
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU, kernels interpreted")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT") or HERE / "out"),
        help="directory for gpu.json and gpu.md (default: $OUT, else benchmarks/out)",
    )
    parser.add_argument("--child", nargs=2, metavar=("SECTION", "UNTIL"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    prepare(args.rehearse)
    if args.child:
        run_section(args.child[0], args.out, float(args.child[1]), rehearse=args.rehearse)
        return 0

    from gpu_report import Report
    from gpu_tables import tables

    (args.out / "gpu.json").unlink(missing_ok=True)
    chosen = [name for name in SECONDS if name in args.sections or name == "environment"]
    run_all(chosen, args.out, args.minutes * 60 - 15, rehearse=args.rehearse)
    sections = Report(args.out / "gpu.json").read()
    text = tables(sections)
    (args.out / "gpu.md").write_text(text + "\n")
    print(text)
    checks = sections.get("checks", {}).get("rows", [])
    fine = all(row["passed"] for row in checks) and not any(each["error"] for each in sections.values())
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
