"""The model card: what a model is made of, in the words someone needs who finds the folder a year later.

Names of models, datasets and settings are other people's text: what means something to Markdown, HTML or YAML is
escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from preceptor.errors import printable

_HUB_ID = re.compile(r"[A-Za-z][\w.-]*/[\w.-]+")
"""What YAML takes for a text without quotes."""
_MARKS = re.compile(r"[\\`*\[\]|]")


def render_card(
    *,
    name: str,
    stage: str,
    kind: str,
    student: str | None = None,
    base_model: str | None = None,
    teacher: str | Mapping[str, str] | None = None,
    data: Mapping[str, float] | Sequence[str] = (),
    losses: Sequence[Mapping[str, Any]] = (),
    training: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    seed: int | None = None,
    versions: Mapping[str, str] | None = None,
) -> str:
    """The card as Markdown with the front matter that model hubs read.

    `base_model` is the student's Hub id, where it has one. `teacher` is one model or a mapping from routes to models;
    `data` maps datasets to their shares of the rows (or only names them); `losses` are the terms of the objective as
    the recipe gives them (`kind`, `weight`, …); `results` are numbers by name, nested ones flattened with dots.
    """
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    tags = ["preceptor"] + (["knowledge-distillation"] if teacher is not None else [])
    front += ["tags:", *(f"- {tag}" for tag in tags)]
    if base_model is not None:
        front += [
            f"base_model: {base_model if _HUB_ID.fullmatch(base_model) else json.dumps(base_model, ensure_ascii=False)}"
        ]
    lines = [*front, "---", "", f"# {_text(name)}: {_text(stage)}", "", _sentence(kind, student, teacher), ""]
    if isinstance(teacher, Mapping):
        lines += ["## Teachers", "", *_table(("rows of", "teacher"), teacher.items()), ""]
    if data:
        lines += ["## Data", ""]
        if isinstance(data, Mapping):
            shares = [(dataset, f"{share:.4g}") for dataset, share in data.items()]
            lines += _table(("dataset", "share of the rows"), shares)
        else:
            lines += [f"- {_text(dataset)}" for dataset in data]
        lines += [""]
    if losses:
        lines += ["## Losses", "", "A weighted sum, averaged over the target positions of a whole step:", ""]
        rows = [(term["kind"], _number(term.get("weight", 1.0)), _settings(term)) for term in losses]
        lines += [*_table(("term", "weight", "settings"), rows), ""]
    if training:
        lines += ["## Training", "", *_table(("setting", "value"), _flat(training)), ""]
    if results:
        lines += ["## Results", "", *_table(("measure", "value"), _flat(results)), ""]
    made = [f"seed {seed}"] if seed is not None else []
    made += [f"{_text(package)} {_text(version)}" for package, version in (versions or {}).items()]
    lines += [f"Made with preceptor{' (' + ', '.join(made) + ')' if made else ''}.", ""]
    return "\n".join(lines)


_UNTRAINED = {
    "init": "A model with untrained weights, drawn from a seed.",
    "compose": "A mixture of experts made of the weights of dense models, not trained since.",
    "merge": "A model whose weights lie between those of two others, not trained since.",
}


def _sentence(kind: str, student: str | None, teacher: str | Mapping[str, str] | None) -> str:
    if kind in _UNTRAINED:
        return _UNTRAINED[kind]
    start = "a new model" if student is None else _code(student)
    if teacher is None:
        return f"Fine-tuned from {start} on the data below."
    if isinstance(teacher, str):
        return f"Distilled from the teacher {_code(teacher)} into {start}."
    return f"Distilled into {start} from the teachers below, each on its own rows."


def _settings(term: Mapping[str, Any]) -> str:
    shown = {k: v for k, v in term.items() if k not in ("kind", "weight") and v is not None}
    return ", ".join(f"{key} {_number(value)}" for key, value in shown.items()) or "–"


def _table(header: Sequence[str], rows: Any) -> list[str]:
    body = [[_cell(cell) for cell in row] for row in rows]
    return [_row(header), _row(["---"] * len(header)), *(_row(row) for row in body)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    return _text(_number(value))


def _text(value: str) -> str:
    """One line of plain text: no mark of Markdown and no tag of HTML begins in it."""
    line = printable(" ".join(value.split()))
    return _MARKS.sub(r"\\\g<0>", line.replace("&", "&amp;").replace("<", "&lt;"))


def _code(value: str) -> str:
    """A name in a code span, which ends at a back-quote alone."""
    return f"`{printable(' '.join(value.split())).replace('`', chr(39))}`"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
