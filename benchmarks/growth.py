"""How each part of a step grows with the length of its rows: time and peak memory at two lengths, as powers of S.

    python benchmarks/growth.py
    python benchmarks/growth.py --S 1024 4096 --rounds 2

The parts are the teacher's forward, the plain SFT step, the step with the prediction term, and what the attention
term adds to it. All run in turn, round after round, on the shape of `step.py`; what is added is a difference within a
round. An exponent of 1 is cost in proportion to the tokens, 2 to the pairs of them; rows stay B, so tokens grow with S.
Rows go to benchmarks/out/growth.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cases import CASES, Shape
from memory import in_fresh_process
from step import OUT, environment, timed

STEPS = ("teacher_forward", "sft", "prediction", "prediction_attention")
LABELS = {
    "teacher_forward": "teacher forward, without its head",
    "sft": "plain SFT step",
    "prediction": "step with prediction",
    "attention": "what attention adds",
    "prediction_attention": "step with both",
}


def measure(shape: Shape, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds and peak MB of each part."""
    # Memory first: the processes that measure it must not share the machine with the models of this one.
    peaks = {name: float(in_fresh_process(name, shape.S, shape.B)["peak_mb"]) for name in STEPS}
    steps = {name: CASES[name](shape) for name in STEPS}
    for step in steps.values():
        step()  # allocations and thread pools of the first step are not a step's cost
    seconds: dict[str, list[float]] = {name: [] for name in LABELS}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(timed(step))
        seconds["attention"].append(seconds["prediction_attention"][-1] - seconds["prediction"][-1])
    peaks["attention"] = peaks["prediction_attention"] - peaks["prediction"]
    return {
        name: {"median_s": round(statistics.median(seconds[name]), 4), "peak_mb": round(peaks[name], 1)}
        for name in LABELS
    }


def exponent(before: float, after: float, factor: float) -> float | None:
    """p where cost grows as S to the p; None where there is nothing to take a logarithm of."""
    return round(math.log(after / before) / math.log(factor), 2) if before > 0 and after > 0 else None


def table(rows: Sequence[dict[str, Any]], lengths: tuple[int, int]) -> str:
    """Markdown: each part at both lengths, and its exponents."""
    short, long = lengths
    lines = [f"| part | S = {short} | S = {long} | time grows as | memory grows as |", "|---|---|---|---|---|"]
    for part, label in LABELS.items():
        a, b = (next(row for row in rows if row["case"] == part and row["S"] == S) for S in lengths)
        cells = [f"{row['median_s']:.2f} s / {row['peak_mb']:.0f} MB" for row in (a, b)]
        powers = [exponent(a[key], b[key], long / short) for key in ("median_s", "peak_mb")]
        cells += ["–" if power is None else f"S^{power:.2f}" for power in powers]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(description="Growth of a training step's parts with the length of its rows.")
    parser.add_argument("--S", type=int, nargs=2, default=[1024, 4096], help="two lengths (default 1024 4096)")
    parser.add_argument("--B", type=int, default=2, help="rows per batch (default 2)")
    parser.add_argument("--rounds", type=int, default=2, help="measured steps per part (default 2)")
    parser.add_argument("--threads", type=int, help="torch threads (default: one per core)")
    parser.add_argument("--out", type=Path, default=OUT, help="directory for growth.json (default benchmarks/out)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # for the processes that measure memory
    machine, lengths = environment(), (min(args.S), max(args.S))
    rows = []
    for S in lengths:
        print(f"S={S} B={args.B}: {args.rounds} rounds of {len(STEPS)} steps", file=sys.stderr, flush=True)
        shape = Shape(S=S, B=args.B)
        found = measure(shape, args.rounds)
        rows += [
            {"case": part, "S": S, "B": args.B, "rounds": args.rounds, **each, "environment": machine}
            for part, each in found.items()
        ]
        for row in rows[-len(LABELS) :]:
            row["shape"] = asdict(shape)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "growth.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows, lengths))
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if name != "trl")
    print(f"\nMedian of {args.rounds} rounds. fp32, B={args.B}, {machine['cpu']},", end=" ")
    print(f"{machine['threads']} threads; {versions}.")


if __name__ == "__main__":
    main()
