"""The two kernels alone on a CPU, at the shapes of `step.py`, beside whole maps, whole logits and the peers' functions.

    python benchmarks/cpu_kernels.py
    python benchmarks/cpu_kernels.py --S 1024 --rounds 3 --threads 1

Value and gradients. The ways are those of gpu_attention.py and gpu_linear.py, in float32 and in bfloat16, run in turn;
`ratio` is the median over rounds of a way's seconds by ours. Rows go to benchmarks/out/cpu_kernels.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import gpu_attention
import gpu_linear
from gpu_clock import Clock, Deadline, Step, measure
from step import OUT, environment

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OURS = "preceptor"
CPU = torch.device("cpu")


def attention_ways(S: int, dtype: torch.dtype) -> dict[str, Step]:
    """Two rows of S tokens whose second half is the response, 8 heads of 32."""
    inputs = gpu_attention.Inputs.of(gpu_attention.Case(S, 0.5, B=2, H=8, G=8, D=32), CPU, dtype)
    return {
        OURS: gpu_attention.ours(inputs, grads=True, how="torch"),
        "whole maps": gpu_attention.maps(inputs, grads=True),
        "attention itself": gpu_attention.flash(inputs, grads=True),
    }


def linear_ways(S: int, dtype: torch.dtype) -> dict[str, Step]:
    """S positions (half of two rows), width 256, 32,000 tokens."""
    case = gpu_linear.Case(S, 32_000, D=256)
    inputs = gpu_linear.Inputs.of(case, CPU, dtype)
    ways: dict[str, Step] = {
        OURS: gpu_linear.ours(inputs, case, "torch"),
        "whole logits": gpu_linear.dense(inputs, case),
    }
    for name, label in (("trl chunked", "TRL, chunked"), ("trl dense", "TRL, whole logits")):
        try:
            ways[label] = gpu_linear.PEERS[name](inputs, case)
        except ImportError as error:
            print(f"{label}: {error}", file=sys.stderr)
    return ways


def table(rows: Sequence[dict[str, Any]], lengths: Sequence[int]) -> str:
    """Markdown: per kernel, dtype and way, milliseconds and the ratio to ours."""
    lines = ["| kernel | dtype | way | " + " | ".join(f"S = {S}" for S in lengths) + " |"]
    lines.append("|---|---|---|" + "---|" * len(lengths))
    for kernel, dtype, way in dict.fromkeys((row["kernel"], row["dtype"], row["case"]) for row in rows):
        cells = []
        for S in lengths:
            wanted = (kernel, dtype, way, S)
            row = next((r for r in rows if (r["kernel"], r["dtype"], r["case"], r["S"]) == wanted), None)
            if row is None or row["median_s"] is None:
                cells.append("–" if row is None else str(row["note"]))
                continue
            ratio = "" if way == OURS or row["ratio"] is None else f" ({row['ratio']:.2f}×)"
            cells.append(f"{row['median_s'] * 1e3:,.0f} ms{ratio}")
        lines.append(f"| {kernel} | {dtype} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(description="Time of the kernels alone on a CPU.")
    parser.add_argument("--S", type=int, nargs="+", default=[1024, 2048], help="tokens per row (default 1024 2048)")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=3, help="measured runs of each way (default 3)")
    parser.add_argument("--threads", type=int, help="torch threads (default: one per core)")
    parser.add_argument("--out", type=Path, default=OUT, help="directory for cpu_kernels.json (default benchmarks/out)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    machine, rows = environment(), []
    for kernel, ways_of in (("attention", attention_ways), ("prediction", linear_ways)):
        for dtype in args.dtypes:
            for S in args.S:
                print(f"{kernel}, {dtype}, S={S}", file=sys.stderr, flush=True)
                ways = ways_of(S, DTYPES[dtype])
                found = measure(ways, Clock(CPU), Deadline(time.time() + 3600), rounds=args.rounds, limit_s=1e9)
                rows += [
                    {
                        "case": way,
                        "kernel": kernel,
                        "dtype": dtype,
                        "S": S,
                        "B": 2,
                        **measured.figures(),
                        "ratio": measured.against(found[OURS]),
                        "environment": machine,
                    }
                    for way, measured in found.items()
                ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "cpu_kernels.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows, args.S))
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(
        f"\nValue and gradients, median of {args.rounds} rounds; in brackets against ours. "
        f"{machine['cpu']}, {machine['threads']} threads; {versions}."
    )


if __name__ == "__main__":
    main()
