"""What a reader has to be wary of, a sentence each: from the scores themselves, and from runs set side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from preceptor.report.groups import Group, RunModels

COMPARED = "not distinguishable"
"""In every sentence of scores.json on a paired difference that is noise; of several seeds it is judged anew."""
FIRST = (
    "no grade could be read",
    "could not be read",
    "are missing",
    "have no annotation",
    "is not defined",
    "is therefore not known",
    "not on one scale",
    "has scores of",
)
"""In sentences on figures that are of other rows than they seem, or that are not there: the page folds a long list."""
MEASURES = {
    "general": "general score",
    "domain": "domain score",
    "mt_bench": "MT-Bench score",
    "alpaca_eval": "AlpacaEval win rate",
}
Models = Mapping[str, Mapping[str, Any]]


def cautions(groups: Sequence[Group], models: Models, differences: Sequence[Mapping[str, Any]]) -> list[str]:
    """All warnings, each once: those of `FIRST`, then those of scores.json, then those of runs set side by side."""
    found: list[str] = []
    for group in groups:
        found += _of_scores(group)
    found += _of_seeds(groups, differences, models)
    found += _other_rows(groups)
    found += _other_judges(models)
    found += _overlaps(models, differences)
    if any(each["kind"] == "published" for each in models.values()):
        found.append(
            "published rows come from other judges, prompts and dates than ours; a difference of a few points to them "
            "means nothing"
        )
    return sorted(dict.fromkeys(found), key=lambda each: not any(words in each for words in FIRST))


def _of_scores(group: Group) -> list[str]:
    """The warnings of scores.json; of several seeds each with its seed, unless all have it."""
    each = [_warnings(run) for run in group.runs]
    if len(each) == 1:
        return [f"{group.prefix}{warning}" for warning in each[0]]
    common = [warning for warning in each[0] if all(warning in other for other in each)]
    own = [
        f"seed {run.run.seed}: {warning}"
        for run, found in zip(group.runs, each, strict=True)
        for warning in found
        if warning not in common and COMPARED not in warning
    ]
    return [f"{group.prefix}{warning}" for warning in (*(w for w in common if COMPARED not in w), *own)]


def _warnings(run: RunModels) -> list[str]:
    return [each for stage in run.run.stages if stage.scores is not None for each in stage.scores.warnings]


def _of_seeds(groups: Sequence[Group], differences: Sequence[Mapping[str, Any]], models: Models) -> list[str]:
    """Seeds that a model lacks, and differences over seeds that are noise."""
    found = []
    for group in groups:
        if len(group.runs) < 2:
            continue
        keys = [group.key(name) for name in group.names]
        for key in keys:
            if models[key]["seeds"] < len(group.runs):
                found.append(f"{key}: has scores of {models[key]['seeds']} of {len(group.runs)} seeds")
        for each in differences:
            if each["model"] in keys and not each["distinguishable"] and each["low"] is not None:
                found.append(
                    f"{each['model']}: over {len(group.runs)} seeds its {MEASURES[each['measure']]} is not "
                    f"distinguishable from that of {each['than']} (paired difference {each['value']:+.3f}, "
                    f"95 % interval {each['low']:+.3f} to {each['high']:+.3f})"
                )
    return found


def _other_rows(groups: Sequence[Group]) -> list[str]:
    """Datasets of one name whose rows differ between the runs compared."""
    seen: dict[str, tuple[str, Any]] = {}
    found = []
    for group in groups:
        for dataset, rows in _asked(group.runs[0]).items() if group.runs else ():
            other, asked = seen.setdefault(dataset, (group.title, rows))
            if asked != rows:
                found.append(
                    f"{dataset}: {group.title} was scored on other rows of it than {other} ({len(rows):,} and "
                    f"{len(asked):,}), so that their scores differ by the choice of rows too"
                )
    return found


def _asked(run: RunModels) -> dict[str, list[Any]]:
    """The questions of each dataset, as the first model with predictions answered them."""
    found: dict[str, list[Any]] = {}
    for stage in run.run.stages:
        for row in next(iter(stage.predictions.values()), ()):
            found.setdefault(row["dataset"], []).append(row["id"])
    return found


def _other_judges(models: Models) -> list[str]:
    found = []
    for suite, title in (("mt_bench", "MT-Bench"), ("alpaca_eval", "AlpacaEval")):
        judges = {each[suite]["judge"] for each in models.values() if each[suite] is not None}
        named = sorted(str(judge) for judge in judges if judge is not None)
        if len(named) > 1:
            found.append(f"{title}: judged by {' and by '.join(named)}, whose scores are not on one scale")
    return found


def other_judges(one: Mapping[str, Any], other: Mapping[str, Any], measure: str) -> list[str]:
    """The two judges of two models where they differ; empty where it is one, or not known."""
    if measure not in ("mt_bench", "alpaca_eval"):
        return []
    judges = [str(judge) for each in (one, other) if (judge := (each.get(measure) or {}).get("judge")) is not None]
    return judges if len(set(judges)) == 2 else []


def _overlaps(models: Models, differences: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each measure the models whose interval overlaps the best one's: their order is not known.

    Models with a paired difference to the best one are left out, for that says it better, and those of other judges,
    for their scores are not on one scale.
    """
    found = []
    for measure, words in MEASURES.items():
        intervals = {
            key: interval
            for key, model in models.items()
            if model["kind"] != "published" and (interval := _interval(model, measure)) is not None
        }
        if not intervals:
            continue
        best = max(intervals, key=lambda key: intervals[key][0])
        paired = [{each["model"], each["than"]} for each in differences if each["measure"] == measure]
        near = [
            key
            for key, (_, _, high) in intervals.items()
            if key != best
            and high >= intervals[best][1]
            and {key, best} not in paired
            and not other_judges(models[key], models[best], measure)
        ]
        if near:
            listed = f"{', '.join(near[:-1])} and {near[-1]} are" if len(near) > 1 else f"{near[0]} is"
            found.append(f"{words}: {listed} not distinguishable from the best, {best}: their intervals overlap")
    return found


def _interval(model: Mapping[str, Any], measure: str) -> tuple[float, float, float] | None:
    """Value, low and high, where the model has all of them."""
    entry = model[measure]
    if entry is not None and measure == "mt_bench":
        entry = entry["score"]
    if entry is None:
        return None
    found = (entry["win_rate" if measure == "alpaca_eval" else "score"], entry["low"], entry["high"])
    return None if None in found else found
