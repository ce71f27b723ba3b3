"""What a training step from a store costs against plain fine-tuning, and what a store takes on disk.

    python benchmarks/stored.py
    python benchmarks/stored.py --S 512 --rounds 3

Models and rows are those of `step.py`; the second half of each row is the response. The teacher's output head is scaled
so that 50 draws give about as many distinct tokens as of a language model (printed); `sample, flat` is the unscaled
random teacher, close to uniform over the vocabulary: the most that draws can take. Looking rows up, reading and
unpacking them is part of the step; the store's files are in the page cache. Each measured step is preceded by a plain
SFT step on the same tokens; `ratio` is the median over these pairs. Rows go to benchmarks/out/stored.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cases import IGNORED, Shape, Step, ours, sft
from preceptor.data.chat import EncodedRow
from preceptor.objective import Logits
from preceptor.teachers import ModelTeacher, StoredTeacher
from preceptor.teachers.store_files import ShardWriter, write_manifest
from preceptor.teachers.store_modes import mode_of
from preceptor.teachers.store_report import info, measured
from preceptor.teachers.store_writer import StoredRow, store_batch
from step import OUT, environment, timed

SHARPNESS = 21.0
CASES: dict[str, dict[str, Any]] = {
    "sample": {"mode": "sample", "draws": 50, "k": None},
    "sample, flat": {"mode": "sample", "draws": 50, "k": None},
    "topk": {"mode": "topk", "draws": None, "k": 64},
    "full": {"mode": "full", "draws": None, "k": None},
}


def written(folder: Path, shape: Shape, case: str) -> dict[str, Any]:
    """Stores the batch's rows in `folder`; returns targets per second, bytes per target and distinct tokens."""
    teacher = shape.teacher()
    if case != "sample, flat":
        teacher.lm_head.weight.mul_(SHARPNESS)
    input_ids, labels = shape.tokens()
    is_target = (labels != IGNORED).numpy()
    ids = input_ids.numpy().astype(np.int32)
    rows = [StoredRow.of(EncodedRow("rows", *row, origin=str(i))) for i, row in enumerate(zip(ids, is_target))]
    nothing = {"sha256": "", "tokens": shape.vocabulary, "text": "", "model": "random"}
    identity = {
        **CASES[case],
        "temperature": 1.0,
        "seed": 0,
        "vocabulary": shape.vocabulary,
        "max_length": shape.S,
        "targets": None,
        "data": ["rows"],
        "teacher": nothing,
        "tokenizer": nothing,
        "template": nothing,
    }
    chosen = {key: identity[key] for key in ("vocabulary", "temperature", "draws", "k")}
    mode = mode_of(identity["mode"], **chosen)
    live = ModelTeacher(teacher)

    def write(where: Path) -> dict[str, dict[str, Any]]:
        writer = ShardWriter(where, identity)
        store_batch(live, rows, mode, writer, seed=0, pad_token_id=0)
        writer.flush()
        return writer.written

    write(folder / "first")  # allocations and thread pools of the first batch are not its cost
    seconds = timed(lambda: write_manifest(folder / "store", identity, write(folder / "store")))
    found = info(folder / "store")
    return {
        "written_per_second": round(found["target_positions"] / seconds, 1),
        "bytes_per_target": found["bytes_per_target"],
        **measured(folder / "store", shape.B),
    }


def from_store(folder: Path, shape: Shape) -> Step:
    """One forward and backward pass with the logits term from the store."""
    return ours(shape, StoredTeacher(folder / "store"), [Logits()])


def measure(shape: Shape, case: str, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as name:
        facts = written(Path(name), shape, case)
        ours, plain = from_store(Path(name), shape), sft(shape)
        for step in (ours, plain):
            step()
        pairs = [(timed(plain), timed(ours)) for _ in range(rounds)]
    return {
        "case": case,
        "S": shape.S,
        "B": shape.B,
        "median_s": round(statistics.median(own for _, own in pairs), 4),
        "sft_s": round(statistics.median(reference for reference, _ in pairs), 4),
        "ratio": round(statistics.median(own / reference for reference, own in pairs), 4),
        **facts,
    }


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(description="A training step from a store, against plain fine-tuning.")
    parser.add_argument("--S", type=int, nargs="+", default=[512, 2048], help="tokens per row")
    parser.add_argument("--B", type=int, default=2, help="rows per batch (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps per case (default 5)")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--threads", type=int, help="torch threads (default: one per core)")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    machine, rows = environment(), []
    for S in args.S:
        shape = Shape(S=S, B=args.B)
        for case in args.cases:
            print(f"S={S} B={args.B}: {case}", file=sys.stderr, flush=True)
            rows.append({**measure(shape, case, args.rounds), "shape": asdict(shape), "environment": machine})
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "stored.json").write_text(json.dumps(rows, indent=1) + "\n")
    print("| store | S | step / SFT step | bytes per target | distinct tokens | written, read targets/s |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        distinct = row.get("distinct_tokens", {}).get("mean", "–")
        print(
            f"| {row['case']} | {row['S']} | {row['ratio']:.2f}× ({row['median_s']:.2f} s) | "
            f"{row['bytes_per_target']:,.1f} | {distinct} | {row['written_per_second']:,.0f}, "
            f"{row['read_per_second']:,.0f} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"\nfp32, B={args.B}, {machine['cpu']}, {machine['threads']} threads; {versions}.")


if __name__ == "__main__":
    main()
