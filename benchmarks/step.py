"""What a training step costs: time and peak memory of ours, of plain fine-tuning, and of the dense ways.

    make bench
    python benchmarks/step.py --S 512 --rounds 3

Time: all cases live in one process, and each measured step is preceded by one teacher forward and one
plain SFT step, so that a machine that slows down slows both sides of a ratio. `ratio` is the median over
these pairs of case / (SFT + teacher forward); for these two references themselves it is against SFT
alone. Memory: see `memory.py`; `memory_ratio` is against the SFT step's. Rows go to
benchmarks/out/step.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from cases import CASES, Shape, Step
from memory import in_fresh_process

OUT = Path(__file__).parent / "out"
REFERENCES = ("teacher_forward", "sft")
LABELS = {
    "teacher_forward": "teacher forward, without its head",
    "sft": "plain SFT step",
    "prediction": "preceptor: prediction",
    "prediction_attention": "preceptor: prediction + attention",
    "trl_dense": "TRL's GKD function, dense logits",
    "paper_dense": "the paper's way, dense logits + maps",
}
OPTIONAL = ("trl_dense",)  # a peer's library: its row says so where it is not installed
SLOW = {"paper_dense": 2}  # rounds, where a step takes half a minute


def timed(step: Step) -> float:
    """Seconds one step takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure_time(shape: Shape, names: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Median seconds and ratios of the named cases, in interleaved pairs.

    A case that cannot run (its library is missing) gets a `note` instead of figures.
    """
    steps: dict[str, Step] = {}
    notes: dict[str, str] = {}
    for name in dict.fromkeys([*REFERENCES, *names]):
        try:
            steps[name] = CASES[name](shape)
        except ImportError as error:
            if name not in OPTIONAL:
                raise
            notes[name] = f"not importable: {error}"
    for step in steps.values():
        step()  # allocations and thread pools of the first step are not a step's cost
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        for name in (n for n in names if n in steps and n not in REFERENCES):
            if turn >= SLOW.get(name, rounds):
                continue
            teacher, sft = timed(steps["teacher_forward"]), timed(steps["sft"])
            own = timed(steps[name])
            seconds["teacher_forward"].append(teacher)
            seconds["sft"].append(sft)
            seconds[name].append(own)
            ratios["teacher_forward"].append(teacher / sft)
            ratios["sft"].append(1.0)
            ratios[name].append(own / (sft + teacher))
    found: dict[str, dict[str, Any]] = {name: {"note": note} for name, note in notes.items()}
    for name, values in seconds.items():
        found[name] = {
            "median_s": round(statistics.median(values), 4),
            "ratio": round(statistics.median(ratios[name]), 4),
            "steps": len(values),
            "fastest_s": round(min(values), 4),
        }
    return found


def measure_memory(shape: Shape, names: list[str]) -> dict[str, dict[str, Any]]:
    """Peak MB of each case above its baseline, and against the SFT step's."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        peak = in_fresh_process(name, shape.S, shape.B)
        found[name] = {"peak_mb": round(float(peak["peak_mb"]), 1), "peak_by": peak["by"]}
    for row in found.values():
        row["memory_ratio"] = round(row["peak_mb"] / found["sft"]["peak_mb"], 4)
    return found


def environment() -> dict[str, Any]:
    """Hardware and versions, so that a figure is never read without them."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "trl", "preceptor"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    cpu = platform.processor() or platform.machine()
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        models = [line.split(":")[1].strip() for line in listing.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {"cpu": cpu, "cores": cores, "threads": torch.get_num_threads(), "versions": versions}


def table(rows: list[dict[str, Any]], sizes: list[int]) -> str:
    """The Markdown table that goes into the README: per case, `seconds / MB (time ratio, memory ratio)`."""
    lines = ["| step | " + " | ".join(f"S={S}" for S in sizes) + " |", "|---|" + "---|" * len(sizes)]
    for case in dict.fromkeys(row["case"] for row in rows):
        cells = []
        for S in sizes:
            row = next(r for r in rows if r["case"] == case and r["S"] == S)
            if row["median_s"] is None:
                cells.append(row["note"])
                continue
            against = f"{row['ratio']:.2f}×, " if case not in REFERENCES else ""
            cells.append(f"{row['median_s']:.2f} s / {row['peak_mb']:.0f} MB ({against}{row['memory_ratio']:.2f}×)")
        lines.append(f"| {LABELS[case]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(description="Time and peak memory of a training step.")
    parser.add_argument("--S", type=int, nargs="+", default=[512, 1024, 2048], help="tokens per row")
    parser.add_argument("--B", type=int, default=2, help="rows per batch (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps per case (default 5)")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--threads", type=int, help="torch threads (default: one per core)")
    parser.add_argument("--out", type=Path, default=OUT, help="directory for step.json (default benchmarks/out)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of the table")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # for the processes that measure memory

    machine = environment()
    names = list(dict.fromkeys([*REFERENCES, *args.cases]))
    rows = []
    for S in args.S:
        print(f"S={S} B={args.B}: {args.rounds} rounds of {len(names)} cases", file=sys.stderr, flush=True)
        shape = Shape(S=S, B=args.B)
        # Memory first: the processes that measure it must not share the machine with the models of this one.
        missing = [name for name in names if not _importable(name)]
        memory = measure_memory(shape, [name for name in names if name not in missing])
        times = measure_time(shape, names, args.rounds)
        for name in names:
            blank = {"median_s": None, "peak_mb": None, "ratio": None, "memory_ratio": None}
            row = {"case": name, "S": S, "B": args.B, **blank, **times[name], **memory.get(name, {})}
            rows.append({**row, "shape": asdict(shape), "environment": machine})
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "step.json").write_text(json.dumps(rows, indent=1) + "\n")
    if args.json:
        print(json.dumps(rows))
        return
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(table(rows, args.S))
    print(
        "\nMedian seconds / peak MB above baseline; in brackets time against (SFT + teacher forward), memory "
        f"against SFT.\nfp32, B={args.B}, {machine['cpu']}, {machine['threads']} threads; {versions}."
    )


def _importable(name: str) -> bool:
    try:
        CASES[name](Shape(S=8, vocabulary=64, layers=1, width=16, intermediate=16, query_heads=2, key_value_heads=2))
    except ImportError:
        if name in OPTIONAL:
            return False
        raise
    return True


if __name__ == "__main__":
    main()
