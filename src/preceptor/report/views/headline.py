"""The report in a few plain sentences: what was learnt, gained and forgotten, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preceptor.report.cautions import other_judges
from preceptor.report.figures.curves import TERMS, line, stages_of
from preceptor.report.figures.looks import title_of
from preceptor.report.figures.losses import three_way
from preceptor.report.views.numbers import duration, interval_of, number, signed, spread, with_spread


@dataclass(frozen=True)
class Sentence:
    """`label` is one word: learnt, gained, forgotten, judged."""

    label: str
    text: str


def headline(report: Mapping[str, Any]) -> list[Sentence]:
    """What the data support, and never nothing at all."""
    models = report["models"]
    reference = next((key for key, model in models.items() if model["kind"] == "reference"), None)
    subject = best_model(models)
    found = [
        Sentence("Learnt", learnt(report, reference)),
        Sentence("Gained", compared(report, subject, reference, "domain")),
        Sentence("Forgotten", compared(report, subject, reference, "general")),
        Sentence("Judged", judged(report, subject, reference)),
    ]
    found = [each for each in found if each.text]
    return found or [Sentence("Nothing yet", "No stage has logged a loss and no model has been scored.")]


def best_model(models: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The model the sentences are about; None without one.

    One that a stage of the runs made, and where none was made one that they were asked to evaluate: never one that is
    there through its answers or figures alone.
    The one that gained most of what the expert did and kept most of what the reference knew: highest recovery plus
    retention, where more than all is no better than all. Where these are not known the highest mean of the scores that
    there are, and without scores the judge's favourite.
    """
    trained = _candidates(models)
    kept = {key: _kept(model) for key, model in trained.items()}
    known = {key: worth for key, worth in kept.items() if worth is not None}
    if known:
        return max(known, key=lambda key: known[key])
    roles = [role for role in ("general", "domain") if any(model.get(role) for model in trained.values())]
    able = [key for key, model in trained.items() if all(model.get(role) for role in roles)] if roles else []
    if able:
        return max(able, key=lambda key: sum(trained[key][role]["score"] for role in roles))
    for test, figure in (("mt_bench", "score"), ("alpaca_eval", "win_rate")):
        values = {key: _judged_value(model.get(test), figure) for key, model in trained.items()}
        judged = {key: value for key, value in values.items() if value is not None}
        if judged:
            return max(judged, key=lambda key: judged[key])
    return None


def _candidates(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    evaluated = {key: model for key, model in models.items() if model["kind"] == "model"}
    # `seconds` is how long the stage took that made the model.
    return {key: model for key, model in evaluated.items() if model.get("seconds") is not None} or evaluated


def _kept(model: Mapping[str, Any]) -> float | None:
    found = [interval_of(model.get(key)) for key in ("recovery", "retention")]
    return None if None in found else sum(min(1.0, each[0]) for each in found if each is not None)


def basis(report: Mapping[str, Any]) -> str:
    """How the model of the headline was chosen, where there was a choice."""
    subject = best_model(report["models"])
    others = len(_candidates(report["models"])) - 1
    if subject is None or others < 1:
        return ""
    way = "mean score" if _kept(report["models"][subject]) is None else "recovery plus retention"
    return (
        f"{title_of(subject, report['models'][subject])} is named for its {way}, the highest of {others + 1} models; "
        "whether others differ from it is for their intervals to say."
    )


def learnt(report: Mapping[str, Any], reference: str | None) -> str:
    """How far the loss of the distilled stage fell, and what it then scores."""
    stages = stages_of(report)
    if not stages:
        return ""
    title = None if reference is None else title_of(reference, report["models"][reference])
    names = [title] if title in stages else []
    names += three_way(report).get("both", [])
    names += [name for kind in ("distill", "sft") for name, curves in stages.items() if curves[0]["kind"] == kind]
    name = next(iter(names), next(iter(stages)))
    for key in ("logits", "next_token", "attention", "loss"):
        found = line(name, stages[name], key)
        if found is not None:
            break
    else:
        return ""
    text = (
        f"{name}: {TERMS[key]} from {number(found.mean[0])} to {number(found.mean[-1])} nats per target position "
        f"in {found.step[-1]:,.0f} steps"
    )
    seconds = [stage["seconds"] for run in report["runs"] for stage in run["stages"]
               if (run["id"], stage["name"]) == (stages[name][0]["run"], stages[name][0]["stage"])]  # fmt: skip
    text += f" ({duration(seconds[0])})" if seconds and seconds[0] is not None else ""
    model = next((each for key, each in report["models"].items() if title_of(key, each) == name), None)
    if model is not None and model.get("general"):
        text += f"; general score {with_spread(model['general'])}"
    if model is not None and model.get("kl_teacher") is not None:
        text += f", KL to its teacher {number(model['kl_teacher'])} nats"
    return f"{text}."


def compared(report: Mapping[str, Any], subject: str | None, reference: str | None, role: str) -> str:
    """The subject's score in `role` beside the reference's."""
    models = report["models"]
    if subject is None or not models[subject].get(role):
        return ""
    model, name = models[subject], title_of(subject, models[subject])
    text = f"{name} scores {with_spread(model[role])} on {role} rows"
    if reference is None or not models[reference].get(role):
        return f"{text}; there is no reference to compare it with."
    text += f" against {with_spread(models[reference][role])} of {title_of(reference, models[reference])}"
    text += f": {_difference(report, role, subject, reference)}"
    if role == "domain":
        recovery = interval_of(model.get("recovery"))
        if recovery is not None:
            value, low, high = (None if each is None else 100 * each for each in recovery)
            told = f" ({spread(low, high, 0)})" if low is not None else ""
            text += f"; {number(value, 0)} %{told} of what the expert gained"
        return f"{text}."
    flips = (model.get("flips") or {}).get(role)
    if flips:
        lost, won = (
            with_spread({**flips[side], "value": flips[side]["rate"]}, 1, 100, " %") for side in ("forgotten", "gained")
        )
        text += f"; answers that were right and are wrong now: {lost}, the reverse: {won}"
    return f"{text}."


def judged(report: Mapping[str, Any], subject: str | None, reference: str | None) -> str:
    """MT-Bench and AlpacaEval of the subject beside the reference's."""
    if subject is None:
        return ""
    models, parts = report["models"], []
    for test, figure, name, digits, unit in (
        ("mt_bench", "score", "MT-Bench", 2, ""),
        ("alpaca_eval", "win_rate", "AlpacaEval", 1, " %"),
    ):
        if _judged_value(models[subject].get(test), figure) is None:
            continue
        told = f"{name} {title_of(subject, models[subject])} "
        told += with_spread(_judged(models[subject][test], figure), digits, 1, unit)
        if reference is not None and _judged_value(models[reference].get(test), figure) is not None:
            told += f", {title_of(reference, models[reference])} "
            told += with_spread(_judged(models[reference][test], figure), digits, 1, unit)
            told += f": {_difference(report, test, subject, reference, digits)}"
        parts.append(told)
    return f"{'; '.join(parts)}." if parts else ""


def _judged(entry: Mapping[str, Any], figure: str) -> Mapping[str, Any]:
    """The figure of a judge's entry with its interval: MT-Bench nests it, AlpacaEval does not."""
    found: Mapping[str, Any] = entry[figure] if figure == "score" else {**entry, "value": entry[figure]}
    return found


def _judged_value(entry: Mapping[str, Any] | None, figure: str) -> float | None:
    if not entry or entry.get(figure) is None:
        return None
    found = interval_of(_judged(entry, figure))
    return None if found is None else found[0]


def _difference(report: Mapping[str, Any], measure: str, model: str, than: str, digits: int = 3) -> str:
    """In words: the paired difference where the report has it, else what the two intervals say."""
    for each in report["differences"]:
        if (each.get("measure"), each["model"], each["than"]) == (measure, model, than):
            if each["low"] is None or each["high"] is None:
                return f"not distinguishable ({signed(each['value'], digits)}, too few rows for an interval)"
            apart = each["low"] > 0 or each["high"] < 0
            told = f"{signed(each['value'], digits)}, {spread(each['low'], each['high'], digits)}"
            return (
                f"{'higher' if each['value'] > 0 else 'lower'} ({told})" if apart else f"not distinguishable ({told})"
            )
    judges = other_judges(report["models"][model], report["models"][than], measure)
    if judges:
        return f"not comparable (judged by {judges[0]} and by {judges[1]})"
    ours, theirs = (_figure(report["models"][key], measure) for key in (model, than))
    if ours is None or theirs is None:
        return "not comparable"
    (value, low, high), (other, other_low, other_high) = ours, theirs
    if low is None or high is None or other_low is None or other_high is None:
        return "no interval to judge the difference by"
    if low <= other_high and other_low <= high:
        return "not distinguishable (their intervals overlap)"
    return "higher" if value > other else "lower"


def _figure(model: Mapping[str, Any], measure: str) -> tuple[float, float | None, float | None] | None:
    entry = model.get(measure)
    if not entry:
        return None
    if measure == "mt_bench":
        return interval_of(entry.get("score"))
    return interval_of({**entry, "value": entry["win_rate"]} if measure == "alpaca_eval" else entry)
