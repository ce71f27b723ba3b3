"""One self-contained HTML page from the content of a report.json: no network, no state, readable without JavaScript.

Model names, prompts and answers are strangers' text. The template engine escapes all of it; a content security policy
lets only this package's own script and style run, by their hashes, and lets nothing be loaded from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from preceptor.report.figures import DrawnFigure
from preceptor.report.figures.looks import BIDI_CONTROLS
from preceptor.report.views import judged, models
from preceptor.report.views.examples import examples
from preceptor.report.views.headline import basis, headline
from preceptor.report.views.numbers import duration
from preceptor.report.views.runs import runs

# What HTML does not allow in text: control characters but tab and line feed.
_CONTROLS = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160)))
_MANY_TASKS = 40


def render(report: Mapping[str, Any], figures: Mapping[str, DrawnFigure]) -> str:
    """The page. `figures` are those of `preceptor.report.figures.draw`; the same report gives the same text."""
    style, script = _resource("style.css"), _resource("page.js")
    text = _environment().get_template("page.html.j2").render(
        report=report,
        figures=figures,
        headline=headline(report),
        basis=basis(report),
        models=models.models_table(report),
        tasks=models.tasks_table(report),
        many_tasks=_MANY_TASKS,
        suites=models.suites_table(report),
        mt_bench=judged.mt_bench_table(report),
        mt_bench_usage=judged.usage(report, "mt_bench"),
        alpaca_eval=judged.alpaca_eval_table(report),
        alpaca_eval_usage=judged.usage(report, "alpaca_eval"),
        examples=examples(report),
        runs=runs(report),
        about=_about(report),
        data=_finite({key: report[key] for key in ("format", "preceptor", "title", "models", "datasets")}),
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
    )  # fmt: skip
    # A lone surrogate, which JSON can carry, cannot be written as UTF-8.
    return text.translate(_CONTROLS | BIDI_CONTROLS).encode("utf-8", "replace").decode("utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("preceptor.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = Markup  # for our own SVG alone
    return environment


@cache
def _resource(name: str) -> str:
    return files("preceptor.report").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; script-src 'sha256-{digest(script)}'; style-src 'sha256-{digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _about(report: Mapping[str, Any]) -> list[str]:
    """The line under the title."""
    ours = [model for model in report["models"].values() if model["kind"] != "published"]
    seeds = sorted({run["seed"] for run in report["runs"] if run.get("seed") is not None})
    parts = [
        _count(len(report["runs"]), "run"),
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else "",
        _count(len(ours), "model"),
        f"{duration(report['seconds'])} of stages" if report.get("seconds") else "",
        f"preceptor {report['preceptor']}",
    ]
    return [part for part in parts if part]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}" if number else ""


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity; null stands for both."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
