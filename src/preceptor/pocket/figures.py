"""The pocket study's figures: the paper's Figure 4 (losses and gradient norms over steps) and exact match."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # pyplot would choose a backend for the whole process

from preceptor.pocket.study import CONTROL, METHODS
from preceptor.pocket.summary import TITLES

# Okabe and Ito's palette, which stays apart for colour-blind readers.
COLOURS = {
    "teacher": "#999999",
    "sft": "#000000",
    "kd_prediction": "#0072B2",
    "kd_attention": "#E69F00",
    "kd_both": "#009E73",
    CONTROL: "#666666",
}
DISTILLED = [name for name in METHODS if name != "sft"]

Curves = Mapping[str, Sequence[Sequence[Mapping[str, float]]]]
"""{method: lines of metrics.jsonl, for each seed}."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The log lines of a training stage."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _plot(axes: Any, curves: Curves, methods: Sequence[str], key: str) -> None:
    for name in methods:
        seeds = [[line[key] for line in lines if key in line] for lines in curves[name]]
        steps = [line["step"] for line in curves[name][0] if key in line]
        values = np.asarray(seeds)
        axes.plot(steps, values.mean(0), color=COLOURS[name], label=TITLES[name], linewidth=1.6)
        if len(seeds) > 1:
            axes.fill_between(steps, values.min(0), values.max(0), color=COLOURS[name], alpha=0.2, linewidth=0)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def draw_losses(curves: Curves, path: Path) -> None:
    """Figure 4 of arXiv 2406.19112, left and middle: attention loss and prediction loss of the three distillations.

    A method's curve for a loss it does not minimise is that loss measured as it trains.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, key, label in ((left, "attention", "attention loss"), (right, "logits", "prediction loss")):
        _plot(axes, curves, DISTILLED, key)
        axes.set_ylabel(f"{label} (nats per target position)")
        axes.set_ylim(bottom=0)
    right.legend(frameon=False)
    figure.savefig(path, dpi=150)


def draw_gradient_norms(curves: Curves, path: Path) -> None:
    """Norm of the whole gradient before clipping, over steps, for every method."""
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.subplots()
    _plot(axes, curves, list(METHODS), "grad_norm")
    axes.set_ylabel("gradient norm")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def draw_exact_match(models: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Mean exact match of each model with its 95 % interval."""
    figure = Figure(figsize=(5.5, 2.6), layout="constrained")
    axes = figure.subplots()
    for place, (name, model) in enumerate(models.items()):
        general = model["general"]
        axes.barh(place, general["score"], color=COLOURS[name], height=0.65)
        axes.plot([general["low"], general["high"]], [place, place], color="#444444", linewidth=1.4)
        axes.text(max(general["high"], general["score"]) + 0.015, place, f"{general['score']:.2f}", va="center")
    axes.set_yticks(range(len(models)), [TITLES[name] for name in models])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("exact match on clean test prompts, mean over tasks")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
