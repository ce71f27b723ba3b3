"""What Domain Alignment from Expert costs: a step with two routed teachers against a stage-1 step with one.

    python benchmarks/routed.py
    python benchmarks/routed.py --S 256 --B 4 --rounds 3

All teachers have one size. `one` is the stage-1 step. `routed` is the same step with an expert for the domain's rows
and a reference for the others, each run on its own rows only. `both` is the paper's way: both teachers are run on all
rows, and each row's own teacher is taken afterwards; student and losses are the same as ours, so that the difference
is the teachers' alone. The domain's rows come as a mixture of that share gives them, about one in ten.

Each measured step is preceded by a stage-1 step on the same batch; `ratio` is the median over these pairs. Rows go to
benchmarks/out/routed.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from cases import IGNORED, Shape
from preceptor.objective import Attention, Logits, Objective
from preceptor.signals import Needs, Signal, TokenBatch
from preceptor.teachers import ModelTeacher, RoutedTeacher
from step import OUT, environment, timed

ROUTES = ("general", "shop")
LABELS = {
    "one": "stage-1 step, one teacher",
    "routed": "DAE step, each teacher on its own rows",
    "both": "DAE step, the paper's way: both teachers on all rows",
}

Teaches = Callable[[TokenBatch, Needs], Signal]


def domain_rows(rounds: int, B: int, share: float) -> list[int]:
    """How many of a batch's B rows are of the domain, batch by batch; exact in every prefix to one row."""
    given = [math.floor(turn * B * share + 0.5) for turn in range(rounds + 1)]
    return [after - before for before, after in pairwise(given)]


def batch_of(shape: Shape, domain: int) -> TokenBatch:
    """One batch whose first `domain` rows are the shop's."""
    input_ids, labels = shape.tokens()
    target_mask = torch.zeros_like(input_ids, dtype=torch.bool)
    target_mask[:, :-1] = labels[:, 1:] != IGNORED
    return TokenBatch(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        position_ids=torch.arange(shape.S).expand(shape.B, -1),
        segment_ids=torch.zeros_like(input_ids),
        target_mask=target_mask,
        routes=(torch.arange(shape.B) < domain).long(),
    )


def on_all_rows(reference: ModelTeacher, expert: ModelTeacher) -> Teaches:
    """Both teachers forward every row; of what each says, its own rows are kept."""

    def teach(batch: TokenBatch, needs: Needs) -> Signal:
        parts = []
        for route, teacher in enumerate((reference, expert)):
            part = teacher.observe(batch, needs.of(route, teacher.name))
            rows = (batch.routes == route).nonzero().squeeze(1)
            if rows.numel() == 0:
                continue
            own = torch.isin(batch.targets.row_N, rows).nonzero().squeeze(1)
            assert part.hidden_ND is not None
            attention = {layer: each.of_rows(rows, each.q_BHRD.shape[2]) for layer, each in part.attention.items()}
            parts.append(
                replace(
                    part,
                    rows=rows,
                    targets=own,
                    hidden_ND=part.hidden_ND[own],
                    attention=attention,
                    teacher=teacher.name,
                )
            )
        return Signal(tuple(parts))

    return teach


def measure(shape: Shape, *, rounds: int, share: float, attention: bool) -> dict[str, dict[str, Any]]:
    """Median seconds of each case, and its ratio to the stage-1 step beside it."""
    student = shape.student()
    reference, expert = (
        ModelTeacher(shape.model(seed).eval().requires_grad_(False), name=name) for seed, name in zip((2, 3), ROUTES)
    )
    routed = RoutedTeacher({"general": reference, "shop": expert}, route_names=ROUTES)
    objective = Objective([Logits(), Attention()] if attention else [Logits()], route_names=ROUTES)
    objective.prepare(student, routed)
    ways: dict[str, Teaches] = {"one": reference, "routed": routed, "both": on_all_rows(reference, expert)}

    def step(teaches: Teaches, domain: int) -> Callable[[], None]:
        def run() -> None:
            batch = batch_of(shape, domain)
            with objective.listening():
                sums = objective(student, batch, teaches(batch, objective.needs))
                (sums.loss / batch.targets.count).backward()
            student.zero_grad()

        return run

    for teaches in ways.values():
        step(teaches, 1)()  # allocations and thread pools of the first step are not a step's cost
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for domain in domain_rows(rounds, shape.B, share):
        for name in ("routed", "both"):
            one, own = timed(step(reference, domain)), timed(step(ways[name], domain))
            for which, value in (("one", one), (name, own)):
                seconds[which].append(value)
                ratios[which].append(value / one)
    return {
        name: {
            "median_s": round(statistics.median(values), 4),
            "ratio": round(statistics.median(ratios[name]), 4),
            "steps": len(values),
            "fastest_s": round(min(values), 4),
        }
        for name, values in seconds.items()
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: seconds, and the ratio to the stage-1 step."""
    lines = ["| step | seconds | against stage 1 |", "|---|---|---|"]
    lines += [f"| {LABELS[row['case']]} | {row['median_s']:.2f} | {row['ratio']:.2f}× |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(description="Time of a step with routed teachers.")
    parser.add_argument("--S", type=int, default=512, help="tokens per row (default 512)")
    parser.add_argument("--B", type=int, default=8, help="rows per batch (default 8)")
    parser.add_argument("--rounds", type=int, default=10, help="measured steps per case (default 10)")
    parser.add_argument("--share", type=float, default=0.1, help="the domain's share of rows (default 0.1)")
    parser.add_argument("--attention", action="store_true", help="with the attention term, which the paper leaves out")
    parser.add_argument("--threads", type=int, help="torch threads (default: one per core)")
    parser.add_argument("--out", type=Path, default=OUT, help="directory for routed.json (default benchmarks/out)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    shape, machine = Shape(S=args.S, B=args.B), environment()
    counts = domain_rows(args.rounds, args.B, args.share)
    print(f"S={args.S} B={args.B}: domain rows of each batch {counts}", file=sys.stderr, flush=True)
    found = measure(shape, rounds=args.rounds, share=args.share, attention=args.attention)
    how = {"S": args.S, "B": args.B, "share": args.share, "attention": args.attention}
    rows = [
        {"case": name, **how, **each, "shape": asdict(shape), "environment": machine} for name, each in found.items()
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "routed.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(
        f"\nMedian seconds of {args.rounds} pairs; domain share {args.share:g} of rows. fp32, S={args.S}, B={args.B}, "
        f"{machine['cpu']}, {machine['threads']} threads; {versions}."
    )


if __name__ == "__main__":
    main()
