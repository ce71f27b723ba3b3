"""Scores as plain tables of a few lines, for a terminal or a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def score_table(scores: Mapping[str, Any]) -> list[str]:
    """One line per model: general and domain score, distances, recovery and retention, each with its interval.

    No line where no model has any of them.
    """
    heads = ["model", "general", "domain", "KL to ref.", "KL to expert", "recovery", "retention"]
    keys = ("kl_reference", "kl_expert", "recovery", "retention")
    lines = [heads]
    for name, entry in scores["models"].items():
        marks = [mark for mark in ("reference", "expert") if scores[mark] == name]
        lines.append(
            [
                name + (f" ({', '.join(marks)})" if marks else ""),
                *(_with_interval(entry[role], "score") for role in ("general", "domain")),
                *(_with_interval(entry[key], "value") for key in keys),
            ]
        )
    used = [column for column in range(len(heads)) if column == 0 or any(line[column] for line in lines[1:])]
    return aligned([[line[column] for column in used] for line in lines]) if len(used) > 1 else []


def task_table(scores: Mapping[str, Any]) -> list[str]:
    """One line per task, the majority answer's score beside every model's; perplexity of datasets without tasks."""
    lines = [["dataset/task", "metric", "rows", "majority", *scores["models"]]]
    for dataset, data in scores["datasets"].items():
        if not data["tasks"]:
            values = [entry["datasets"][dataset]["perplexity"]["value"] for entry in scores["models"].values()]
            lines.append([dataset, "perplexity", f"{data['rows']:,}", "", *(f"{value:.3f}" for value in values)])
        for task, facts in data["tasks"].items():
            values = [entry["datasets"][dataset]["tasks"][task]["score"] for entry in scores["models"].values()]
            lines.append(
                [
                    dataset if task == dataset else f"{dataset}/{task}",
                    facts["metric"],
                    f"{facts['rows']:,}",
                    "" if facts["majority"] is None else f"{facts['majority']:.3f}",
                    *(f"{value:.3f}" for value in values),
                ]
            )
    return aligned(lines)


def _with_interval(figure: Mapping[str, float] | None, key: str) -> str:
    return "" if figure is None else with_interval(figure, key, 3)


def with_interval(figure: Mapping[str, float | None], key: str, digits: int) -> str:
    """`0.869 (0.848 to 0.890)`; the figure alone where its interval is not known."""
    told = f"{figure[key]:.{digits}f}"
    return told if figure["low"] is None else f"{told} ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})"


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells as columns of equal width, the first to the left and the others to the right; no head alone."""
    if len(lines) < 2:
        return []
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
