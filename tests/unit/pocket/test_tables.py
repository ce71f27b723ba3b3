"""The study's tables: a line per task, a line per aligned model."""

from __future__ import annotations

from typing import Any

from preceptor.pocket.methods import DISTILLED, METHODS
from preceptor.pocket.shop import SHOP
from preceptor.pocket.tables import TITLES, alignment_table, distillation_table
from preceptor.pocket.tasks import TASKS

PARTS = ("distil", "align", "clean")
NAMES = ("teacher", *(name for name, method in METHODS.items() if name in DISTILLED or method.part in PARTS))


def model(name: str) -> dict[str, Any]:
    interval = {"score": 0.5, "low": 0.4, "high": 0.6}
    value = {"value": 0.98, "low": 0.9, "high": 1.0}
    distances = {"kl_teacher": 0.2, "attention_kl": 0.1} if name in DISTILLED else {}
    return {
        "general": interval,
        "domain": interval,
        "tasks": dict.fromkeys((*TASKS, *SHOP), interval),
        "recovery": None if name == "kd_both" else value,
        "retention": value,
        "kl_reference": value,
        "seconds": None if name == "teacher" else 12.3,
        **distances,
    }


def test_the_tables_have_a_line_per_task_and_a_line_per_aligned_model() -> None:
    models = {name: model(name) for name in NAMES}
    lines = distillation_table(models).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines[2 : 2 + len(TASKS)]] == list(TASKS)
    assert all(TITLES[name] in lines[0] for name in (*DISTILLED, "sft_clean"))
    lines = alignment_table(models).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith("reference (KD, both)")
    aligned = [name for name, method in METHODS.items() if method.part == "align"]
    assert [line.split("  ")[0] for line in lines[3 : 3 + len(aligned)]] == [TITLES[name] for name in aligned]
    assert not any(line.startswith(("teacher", "KD, prediction")) for line in lines)
