"""The tables of what judges said: MT-Bench and AlpacaEval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preceptor.report.views.models import name_cell
from preceptor.report.views.numbers import money
from preceptor.report.views.table import EMPTY, Cell, Column, Table, figure, plain, without_empty, words


def mt_bench_table(report: Mapping[str, Any]) -> Table | None:
    """Means, turns, categories, and how many judgments had no rating."""
    models = {key: model for key, model in report["models"].items() if model.get("mt_bench")}
    told = (report.get("mt_bench") or {}).get("categories") or []
    found = dict.fromkeys(each for model in models.values() for each in model["mt_bench"].get("categories") or {})
    categories = [*(each for each in told if each in found), *(each for each in found if each not in told)]
    columns = [
        Column("Model", numeric=False),
        Column("Mean"),
        Column("Turn 1"),
        Column("Turn 2"),
        *(Column(category) for category in categories),
        Column("Judged", "judgments in the mean"),
        Column("No rating", "judgments without a rating, left out of the mean"),
        Column("Missing", "judgments expected and absent"),
        Column("Judge", numeric=False),
    ]
    rows = [
        [
            name_cell(key, {**model, "pareto": False}),
            figure(entry.get("score"), 2),
            *(figure((entry.get("turns") or {}).get(turn), 2) for turn in ("1", "2")),
            *(figure((entry.get("categories") or {}).get(category), 1) for category in categories),
            *(plain(entry.get(count)) for count in ("rows", "failed", "missing")),
            _judge(report, "mt_bench", entry),
        ]
        for key, model, entry in ((key, model, model["mt_bench"]) for key, model in models.items())
    ]
    about = report.get("mt_bench") or {}
    questions = f", {about['questions']:,} questions" if about.get("questions") else ""
    caption = f"MT-Bench{questions}, scores from 1 to 10 with 95 % intervals."
    return without_empty(
        "mt-bench", caption, columns, rows, [model["kind"] == "published" for model in models.values()]
    )


def alpaca_eval_table(report: Mapping[str, Any]) -> Table | None:
    """Win rates with what they are made of."""
    models = {key: model for key, model in report["models"].items() if model.get("alpaca_eval")}
    columns = [
        Column("Model", numeric=False),
        Column("Win rate, %"),
        Column("Std. error", "standard error of the win rate, points"),
        Column("Wins"),
        Column("Losses"),
        Column("Ties"),
        Column("No preference", "annotations that could not be read"),
        Column("Missing", "instructions without an annotation"),
        Column("Length", "mean length of the answers, characters"),
        Column("Baseline length", "mean length of the baseline's answers, characters"),
        Column("Judge", numeric=False),
    ]
    rows = [
        [
            name_cell(key, {**model, "pareto": False}),
            figure({**entry, "value": entry.get("win_rate")}, 2),
            plain(entry.get("standard_error"), 2),
            *(plain(entry.get(count)) for count in ("wins", "losses", "ties", "failed", "missing")),
            plain(entry.get("mean_length")),
            plain(entry.get("baseline_mean_length")),
            _judge(report, "alpaca_eval", entry),
        ]
        for key, model, entry in ((key, model, model["alpaca_eval"]) for key, model in models.items())
    ]
    about = report.get("alpaca_eval") or {}
    parts = [
        f"{about['instructions']:,} instructions" if about.get("instructions") else "",
        f"baseline {about['baseline']}" if about.get("baseline") else "",
        {"ranking": "preference from a ranking", "logprobs": "preference from log-probabilities"}.get(
            str(about.get("preference")), ""
        ),
        {"random": "order of the two answers drawn by seed", "both": "both orders judged"}.get(
            str(about.get("order")), ""
        ),
    ]
    caption = ", ".join(["AlpacaEval", *(part for part in parts if part)]) + "; 95 % intervals."
    quiet = [model["kind"] == "published" for model in models.values()]
    return without_empty("alpaca-eval", caption, columns, rows, quiet)


def usage(report: Mapping[str, Any], test: str) -> str:
    """What the judge was asked and cost, in a sentence; empty where nobody counted.

    Tokens and cost are of all replies that the scores are made of, those kept from earlier attempts too.
    """
    used = (report.get(test) or {}).get("usage") or {}
    names = {
        "requests": "requests", "cached": "from the cache", "retried": "retried", "failed": "failed",
        "cut": "cut at the token limit", "uncounted": "without a token count",
    }  # fmt: skip
    parts = [f"{used[key]:,} {name}" for key, name in names.items() if used.get(key)]
    uncounted = bool(used.get("uncounted"))
    least = "at least " if uncounted else ""
    tokens = {what: _in_all(used, f"{what}_tokens") for what in ("prompt", "completion")}
    if any(tokens.values()) or not uncounted:
        parts += [f"{least}{count:,} {what} tokens" for what, count in tokens.items() if count is not None]
        parts += _cost(used, least)
    return f"The judge: {', '.join(parts)}." if parts else ""


def _in_all(used: Mapping[str, Any], key: str) -> float | None:
    """Of the requests sent last and of those that an earlier attempt sent."""
    found = [used[name] for name in (key, f"cached_{key}") if used.get(name) is not None]
    return sum(found) if found else None


def _cost(used: Mapping[str, Any], least: str) -> list[str]:
    """What all replies cost, and what of it the last attempt paid where that is less."""
    last, whole = used.get("cost"), used.get("cost_in_all")
    if whole is None:
        return [] if last is None else [f"cost {least}{money(last)}"]
    paid = f", of which {money(last)} in the last attempt" if last is not None and last != whole else ""
    return [f"cost {least}{money(whole)} in all{paid}"]


def _judge(report: Mapping[str, Any], test: str, entry: Mapping[str, Any]) -> Cell:
    judge = entry.get("judge") or ("" if entry.get("source") == "published" else (report.get(test) or {}).get("judge"))
    return (
        words(str(judge), "" if entry.get("source") in ("ours", "published", None) else str(entry["source"]))
        if judge
        else EMPTY
    )
