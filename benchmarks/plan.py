"""What `preceptor plan` predicts beside what a run takes: peak memory and the time of a step.

    python benchmarks/plan.py
    python benchmarks/plan.py --cases sft kd --json

Each case is a recipe with models of random weights. Its training stage is planned, and run in a process of its own,
whose peak is the kernel's high-water mark (VmHWM) above its resident size before any model is loaded; a tiny training
of the same kind has run there by then, so that libraries, thread pools and oneDNN's kernels are not counted. Blocks of
at least 1 MiB are mapped by themselves, so that freed memory is given back and the mark is what was in use. The time is
the median of the steps after the first. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from memory import _return_freed_memory, _status
from step import environment

OUT = Path(__file__).parent / "out"


@dataclass(frozen=True)
class Case:
    """A training stage; `keys` are those of the stage beside what all have."""

    what: str
    keys: dict[str, Any]
    teacher: str | None = None
    """None trains without one; `dense` and `sparse` are a teacher of that kind; `routed` are two dense ones."""
    student: dict[str, Any] = field(default_factory=dict)
    batch: int = 4
    training: dict[str, Any] = field(default_factory=dict)


_LOGITS = {"objective": [{"kind": "logits"}]}
_BOTH = {"objective": [{"kind": "logits"}, {"kind": "attention"}]}
CASES: dict[str, Case] = {
    "sft": Case("plain fine-tuning", {}),
    "accumulated": Case("fine-tuning, 4 micro-batches a step", {"rows_per_step": 8}, batch=2),
    "checkpointed": Case("gradient checkpointing", {}, training={"gradient_checkpointing": True}, batch=8),
    "bf16": Case("bfloat16 autocast", {}, training={"bf16": True, "use_cpu": True}),
    "packed": Case("packed rows", {"packing": True, "max_length": 1024}, batch=4),
    "lora": Case("LoRA", {"lora": {"r": 16}}, batch=8),
    "kd": Case("distillation, logits", _LOGITS, "dense"),
    "kd_attention": Case("distillation, logits and attention", _BOTH, "dense"),
    "routed": Case("two routed teachers, logits and attention", _BOTH, "routed"),
    "sparse_teacher": Case("a mixture of experts as the teacher", _LOGITS, "sparse"),
    "bf16_kd": Case(
        "logits and attention under bfloat16 autocast", _BOTH, "dense", training={"bf16": True, "use_cpu": True}
    ),
    "adafactor": Case("Adafactor, all tokens targets", {"targets": "all"}, training={"optim": "adafactor"}),
}

_MODEL = {
    "model_type": "mistral",
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "sliding_window": None,
}
_SPARSE = {**_MODEL, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
_TINY = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 128}
_SAVED = {"dtype": "bfloat16"}
"""Files of another dtype than what is loaded: else weights stay views of the mapped file, which RSS counts or not."""
STEPS = 3


def _loaded(stage: str) -> dict[str, str]:
    return {"path": f"stage:{stage}", "dtype": "float32"}


def recipe_of(case: Case, folder: Path, *, tiny: bool) -> dict[str, Any]:
    """The case as a recipe in `folder`, or one like it that takes no time and no memory."""
    model = {**_MODEL, **(_TINY if tiny else {})}
    tokenizer = {"kind": "characters", "train_on": ["a", "b"], "vocab_size": 96}
    small = {**model, **case.student, **(_TINY if tiny else {})}
    stages: dict[str, Any] = {"small": {"kind": "init", "config": small, "tokenizer": tokenizer, **_SAVED}}
    wide = {} if tiny else {"hidden_size": 512, "num_attention_heads": 8}
    if case.teacher in ("dense", "routed"):
        stages["large"] = {"kind": "init", "config": {**model, **wide}, "tokenizer": "stage:small", **_SAVED}
    if case.teacher == "routed":
        stages["other"] = {"kind": "init", "config": model, "tokenizer": "stage:small", **_SAVED}
    if case.teacher == "sparse":
        sparse = {**_SPARSE, **(_TINY if tiny else {})}
        stages["large"] = {"kind": "init", "config": sparse, "tokenizer": "stage:small", **_SAVED}
    stage: dict[str, Any] = {
        "kind": "sft" if case.teacher is None else "distill",
        ("model" if case.teacher is None else "student"): "stage:small",
        "data": {"a": 0.5, "b": 0.5},
        "rows_per_step": case.batch,
        "max_length": 512,
        "training": {
            "max_steps": 2 if tiny else STEPS,
            "per_device_train_batch_size": case.batch,
            "per_device_eval_batch_size": 2,
            "save_strategy": "no",
            "logging_steps": 1,
            **case.training,
        },
        **case.keys,
    }
    if case.teacher == "routed":
        stage["teacher"] = {"routes": {"a": _loaded("large"), "b": _loaded("other")}}
    elif case.teacher is not None:
        stage["teacher"] = _loaded("large")
    stages["train"] = stage
    data = {
        name: {"path": str(folder / f"{name}{'-tiny' if tiny else ''}.jsonl"), "allow_drops": True} for name in "ab"
    }
    return {
        "name": "tiny" if tiny else "case",
        "runs_dir": str(folder / "runs"),
        "data": data,
        "stages": stages,
    }


def write_rows(folder: Path) -> None:
    """Rows of letters of nearly 512 tokens, half of them the answer; and short ones."""
    draw = random.Random(0)
    for name in "ab":
        for suffix, low, high in (("", 225, 240), ("-tiny", 4, 8)):
            rows = [
                {key: "".join(draw.choices("abcdefgh ", k=draw.randint(low, high))) for key in ("prompt", "completion")}
                for _ in range(64)
            ]
            (folder / f"{name}{suffix}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def predicted(name: str, folder: Path) -> dict[str, Any]:
    """The plan of a case whose models are there."""
    from preceptor.estimate.target import Device
    from preceptor.plan import plan
    from preceptor.recipe import parse_recipe
    from preceptor.runs import run

    recipe = parse_recipe(recipe_of(CASES[name], folder, tiny=False), name="case")
    for stage in recipe.stages:
        if stage != "train":
            run(recipe, only=stage, log=_silent)
    begun = time.perf_counter()
    found = plan(recipe, log=_silent, device=Device())["stages"]["train"]
    return {**{key: found[key] for key in ("memory", "time")}, "plan_seconds": time.perf_counter() - begun}


def measured(name: str, folder: Path) -> dict[str, Any]:
    """Peak bytes and seconds per step of a case, in this process."""
    from preceptor.recipe import parse_recipe
    from preceptor.runs import run
    from preceptor.stages.allocator import keep_large_blocks_apart
    from preceptor.trainer import DistillationTrainer

    keep_large_blocks_apart()
    tiny, case = (parse_recipe(recipe_of(CASES[name], folder, tiny=each), name="case") for each in (True, False))
    run(tiny, log=_silent)
    gc.collect()
    _return_freed_memory()
    marks: list[float] = []
    step = DistillationTrainer._get_num_items_in_batch

    def marked(self: Any, *args: Any, **kwargs: Any) -> Any:
        marks.append(time.perf_counter())  # once per optimiser step, before its first pass
        return step(self, *args, **kwargs)

    DistillationTrainer._get_num_items_in_batch = marked  # type: ignore[method-assign]
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run(case, only="train", log=_silent)
    peak = _status("VmHWM") - before
    seconds = [later - sooner for sooner, later in pairwise(marks)]
    return {"peak": peak, "step_seconds": statistics.median(seconds[1:] or seconds)}


def _silent(_: str) -> None:
    pass


def _in_fresh_process(name: str, folder: Path, threads: int | None) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), "--one", name, "--folder", str(folder)]
    if threads:
        command += ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown table of docs/plan.md."""
    lines = [
        "| training | predicted | measured | ratio | step predicted | step measured | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['what']} | {row['predicted'] / 1e6:.0f} MB | {row['measured'] / 1e6:.0f} MB | "
            f"{row['predicted'] / row['measured']:.2f} | {row['predicted_seconds']:.2f} s | "
            f"{row['measured_seconds']:.2f} s | {row['predicted_seconds'] / row['measured_seconds']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Predict, measure, print the table, write the rows."""
    import torch

    parser = argparse.ArgumentParser(description="Predicted and measured memory and time of trainings.")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--threads", type=int, help="torch threads (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of the table")
    parser.add_argument("--one", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.one:
        with contextlib.redirect_stdout(sys.stderr):
            found = measured(args.one, args.folder)
        print(json.dumps(found))
        return
    rows = []
    for name in args.cases:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_rows(folder)
            plan = predicted(name, folder)
            run = _in_fresh_process(name, folder, args.threads)
        memory = plan["memory"]
        row = {
            "case": name,
            "what": CASES[name].what,
            "predicted": memory["needed"] - memory["parts"]["overhead"],
            "measured": run["peak"],
            "parts": memory["parts"],
            "phase": memory["phase"],
            "predicted_seconds": plan["time"]["longest_step_seconds"],
            "measured_seconds": run["step_seconds"],
            "plan_seconds": plan["plan_seconds"],
            "environment": environment(),
        }
        rows.append(row)
        print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "plan.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows) if args.json else table(rows))


if __name__ == "__main__":
    main()
