"""MT-Bench and AlpacaEval as plain tables, for a terminal or a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preceptor.evaluation.table import aligned, with_interval


def mt_bench_table(result: Mapping[str, Any]) -> list[str]:
    """One line per model: score and turns with their intervals, and how many judgments they are of."""
    lines = [["MT-Bench", "score", "turn 1", "turn 2", "rows", "failed", "missing"]]
    for name, entry in result["models"].items():
        scores = [entry["score"], entry["turns"]["1"], entry["turns"]["2"]]
        counts = [f"{entry[key]:,}" for key in ("rows", "failed", "missing")]
        lines.append([name, *(_figure(each, "score") for each in scores), *counts])
    return aligned(lines)


def mt_bench_categories(result: Mapping[str, Any]) -> list[str]:
    """One line per category, a column per model."""
    models = result["models"]
    lines = [["category", *models]]
    for category in result["categories"]:
        scores = [entry["categories"][category]["score"] for entry in models.values()]
        lines.append([category, *("" if score is None else f"{score:.2f}" for score in scores)])
    return aligned(lines) if models else []


def alpaca_eval_table(result: Mapping[str, Any]) -> list[str]:
    """One line per model: win rate in percent with its interval and standard error, what it is of, and lengths."""
    lines = [["AlpacaEval", "win rate, %", "s.e.", "wins", "losses", "ties", "failed", "missing", "characters"]]
    for name, entry in result["models"].items():
        counts = [f"{entry[key]:,}" for key in ("wins", "losses", "ties", "failed", "missing")]
        error = "" if entry["standard_error"] is None else f"{entry['standard_error']:.2f}"
        rate = "" if entry["win_rate"] is None else _figure(entry, "win_rate")
        lines.append([name, rate, error, *counts, f"{entry['mean_length']:,.0f}"])
    return aligned(lines)


def _figure(figure: Mapping[str, float] | None, key: str) -> str:
    return "" if figure is None else with_interval(figure, key, 2)
