"""Sentences on models' scores: what is undefined, what is noise, and what a constant answer scores too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preceptor.evaluation.bootstrap import CONFIDENCE


def model_warnings(
    datasets: Mapping[str, Any],
    entries: Mapping[str, Any],
    reference: str | None,
    expert: str | None,
) -> list[str]:
    """What to be wary of in the figures of models.

    Args:
        datasets: `datasets` of scores.json.
        entries: its `models`.
        reference: its `reference`.
        expert: its `expert`.
    """
    found = []
    percent = f"{CONFIDENCE:.0%}".replace("%", " %")

    def told(gain: Mapping[str, Any]) -> str:
        interval = "too few rows for an interval"
        if gain["low"] is not None:
            interval = f"{percent} interval {gain['low']:+.3f} to {gain['high']:+.3f}"
        return f"paired difference {gain['value']:+.3f}, {interval}"

    if reference is not None and expert is not None:
        gain = entries[expert]["over_reference"]["domain"]
        if gain is not None and (gain["low"] is None or gain["low"] <= 0):
            found.append(
                f"{expert}: the expert does not beat the reference {reference} on the domain beyond noise "
                f"({told(gain)}), so recovery is not defined"
            )
    if reference is not None and entries[reference]["general"] and entries[reference]["retention"] is None:
        found.append(
            f"{reference}: the reference's general score is not above 0 beyond noise, so retention is not defined"
        )
    for name, entry in entries.items():
        for role, gain in entry["over_reference"].items():
            if gain is not None and name != reference and (gain["low"] is None or gain["low"] <= 0 <= gain["high"]):
                assert reference is not None
                found.append(
                    f"{name}: its {role} score {entry[role]['score']:.3f} is not distinguishable from the reference's "
                    f"{entries[reference][role]['score']:.3f} ({told(gain)})"
                )
        blind = [
            f"{task} ({score['score']:.3f}, majority {datasets[data]['tasks'][task]['majority']:.3f})"
            for data, each in entry["datasets"].items()
            for task, score in each["tasks"].items()
            if datasets[data]["tasks"][task]["metric"] == "accuracy"
            and (score["low"] is None or score["low"] <= datasets[data]["tasks"][task]["majority"])
        ]
        if blind:
            found.append(f"{name}: not above always giving the most frequent answer on {', '.join(blind)}")
    return found
