"""The pocket study's figures: the paper's Figure 4 (losses, gradient norms), exact match, and gain against loss."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # pyplot would choose a backend for the whole process

from preceptor.pocket.methods import DISTILLED, EXPERT, REFERENCE
from preceptor.pocket.summary import TITLES, pareto_front

# Okabe and Ito's palette, which stays apart for colour-blind readers.
COLOURS = {
    "teacher": "#999999",
    "sft": "#000000",
    "kd_prediction": "#0072B2",
    "kd_attention": "#E69F00",
    "kd_both": "#009E73",
    "sft_clean": "#666666",
    "dae": "#D55E00",
    "dae_pair": "#CC79A7",
}
FAMILIES = {
    "dae": ("DAE", "#D55E00", "o"),
    "replay": ("replay", "#0072B2", "s"),
    "merge": ("interpolation", "#E69F00", "^"),
    "mol": ("CE on domain, KL elsewhere", "#56B4E9", "D"),
    "swapped": ("DAE, routes swapped", "#CC79A7", "X"),
}

Lines = Sequence[Mapping[str, float]]
Curves = Mapping[str, Sequence[Lines]]
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
    """Figure 4 of arXiv 2406.19112: attention loss and prediction loss of the distillations, and the alignment's loss.

    A method's curve for a loss it does not minimise is that loss measured as it trains. The right panel is there where
    `curves` has an aligned model.
    """
    aligned = [name for name in ("dae", "dae_pair") if name in curves]
    panels = 3 if aligned else 2
    figure = Figure(figsize=(4.5 * panels, 3.4), layout="constrained")
    axes = figure.subplots(1, panels)
    distilled = [name for name in DISTILLED if name != "sft" and name in curves]
    for each, key, label in ((axes[0], "attention", "attention loss"), (axes[1], "logits", "prediction loss")):
        _plot(each, curves, distilled, key)
        each.set_ylabel(f"{label} (nats per target position)")
        each.set_ylim(bottom=0)
    axes[1].legend(frameon=False)
    if aligned:
        _plot(axes[2], curves, aligned, "logits")
        axes[2].set_ylabel("alignment, prediction loss (nats)")
        axes[2].set_ylim(bottom=0)
        axes[2].legend(frameon=False)
    figure.savefig(path, dpi=150)


def draw_gradient_norms(curves: Curves, path: Path) -> None:
    """Norm of the whole gradient before clipping, over steps, for every method of stage 1."""
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.subplots()
    _plot(axes, curves, [name for name in DISTILLED if name in curves], "grad_norm")
    axes.set_ylabel("gradient norm")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def draw_exact_match(models: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Mean general exact match of the teacher and each model of stage 1, with its 95 % interval."""
    shown = {name: models[name] for name in ("teacher", *DISTILLED, "sft_clean") if name in models}
    figure = Figure(figsize=(5.5, 2.6), layout="constrained")
    axes = figure.subplots()
    for place, (name, model) in enumerate(shown.items()):
        general = model["general"]
        axes.barh(place, general["score"], color=COLOURS[name], height=0.65)
        axes.plot([general["low"], general["high"]], [place, place], color="#444444", linewidth=1.4)
        axes.text(max(general["high"], general["score"]) + 0.015, place, f"{general['score']:.2f}", va="center")
    axes.set_yticks(range(len(shown)), [TITLES[name] for name in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("exact match on clean test prompts, mean over tasks")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def draw_retention(models: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Domain against general exact match of every aligned model with 95 % intervals, and the Pareto front of all."""
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    shown = {
        name: model
        for name, model in models.items()
        if name in (REFERENCE, EXPERT) or (name.split("_")[0] in FAMILIES and not name.endswith("_pair"))
    }
    front = [shown[name] for name in pareto_front(shown)]
    axes.plot(
        [each["general"]["score"] for each in front],
        [each["domain"]["score"] for each in front],
        color="#999999",
        linewidth=1,
        linestyle="--",
        label="Pareto front",
        zorder=1,
    )
    named: set[str] = set()
    for name, model in shown.items():
        if name in (REFERENCE, EXPERT):
            label, colour, marker = ("reference", "#009E73", "P") if name == REFERENCE else ("expert", "#000000", "*")
        else:
            label, colour, marker = FAMILIES[name.split("_")[0]]
        general, domain = model["general"], model["domain"]
        axes.errorbar(
            general["score"],
            domain["score"],
            xerr=[[general["score"] - general["low"]], [general["high"] - general["score"]]],
            yerr=[[domain["score"] - domain["low"]], [domain["high"] - domain["score"]]],
            color=colour,
            marker=marker,
            markersize=7,
            linewidth=0.9,
            linestyle="none",
            label=None if label in named else label,
        )
        named.add(label)
        note = name.partition("_")[2].replace("_clean", "*")
        if note:
            axes.annotate(note, (general["score"], domain["score"]), (5, 4), textcoords="offset points", fontsize=7)
    axes.set_xlabel("general exact match")
    axes.set_ylabel("shop exact match")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
