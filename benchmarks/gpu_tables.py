"""gpu.json as the Markdown of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

ATTENTION_WAYS = {
    "triton": "preceptor, Triton",
    "torch": "preceptor, PyTorch row blocks",
    "maps": "whole maps (the paper's way)",
    "flash": "flash attention itself",
}
LINEAR_WAYS = {
    "ours": "preceptor, Triton",
    "ours, torch": "preceptor, PyTorch",
    "dense": "whole logits, PyTorch",
    "liger": "Liger, fused linear",
    "trl chunked": "TRL, chunked",
    "trl dense": "TRL's GKD function, whole logits",
}
STEP_WAYS = {
    "teacher_forward": "teacher forward, without its head",
    "sft": "plain SFT",
    "prediction": "+ prediction",
    "prediction_attention": "+ prediction + attention",
}


def tables(sections: dict[str, Any]) -> str:
    """All that was measured; a section that failed or did not end says so."""
    parts = [_environment(sections), _checks(sections)]
    parts += [each(sections.get(name, {}).get("rows", [])) for name, each in _TABLES.items()]
    for name, section in sections.items():
        if section.get("error"):
            parts.append(f"`{name}` did not end: {section['error'].strip().splitlines()[-1]}")
    return "\n\n".join(part for part in parts if part)


def _environment(sections: dict[str, Any]) -> str:
    rows = sections.get("environment", {}).get("rows", [])
    if not rows:
        return ""
    row = rows[0]
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items() if version)
    memory = "" if row["memory_gb"] is None else f", {row['memory_gb']:.0f} GB"
    rate = row["matmul_tflops"]
    return (
        f"{row['device']}{memory}; driver {row['driver']}; {versions}. bf16 matmul measured here: {rate:,.3g} TFLOP/s "
        f"({row['matmul_size']:,}³, median of {row['matmul_rounds']})."
    )


def _checks(sections: dict[str, Any]) -> str:
    rows = sections.get("checks", {}).get("rows", [])
    if not rows:
        return ""
    lines = ["| check | dtype | largest error | passed |", "|---|---|---|---|"]
    for row in rows:
        worst = max(row.get("errors", {}).values(), default=None)
        said = row.get("says") or row.get("note") or ("–" if worst is None else f"{worst:.1e}")
        lines.append(
            f"| {row['check']} | {row.get('dtype', '–')} | {_cell(said)} | {'yes' if row['passed'] else 'NO'} |"
        )
    return "\n".join(lines)


def _attention(rows: Sequence[Row]) -> str:
    timed = [row for row in rows if row["way"] != "agreement"]
    if not timed:
        return ""
    kinds = list(dict.fromkeys((row["S"], row["B"], row["fraction"]) for row in timed))
    lines = [
        "| S | rows | response | way | forward | with gradients | share of matmul, forward | with gradients | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        for way, label in ATTENTION_WAYS.items():
            forward = _find(timed, way, S=kind[0], B=kind[1], fraction=kind[2])
            grads = _find(timed, f"{way} + grads", S=kind[0], B=kind[1], fraction=kind[2])
            if forward is None or grads is None:
                continue
            lines.append(
                f"| {kind[0]} | {kind[1]} | {kind[2]:g} | {label} | {_time(forward)} | {_time(grads)} | "
                f"{_share(forward)} | {_share(grads)} | {_gigabytes(grads, 'above_gb')} |"
            )
    return "\n".join(lines)


def _linear(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = ["| N | V | loss | way | time | share of matmul | memory |", "|---|---|---|---|---|---|---|"]
    for N, V, beta in dict.fromkeys((row["N"], row["V"], row["beta"]) for row in rows):
        for way, label in LINEAR_WAYS.items():
            row = _find(rows, way, N=N, V=V, beta=beta)
            if row is None:
                continue
            loss = "forward KL" if beta == 0 else f"JSD {beta:g}"
            lines.append(
                f"| {N:,} | {V:,} | {loss} | {label} | {_time(row)} | {_share(row)} | {_gigabytes(row, 'above_gb')} |"
            )
    return "\n".join(lines)


def _steps(rows: Sequence[Row]) -> str:
    parts = []
    for teacher in dict.fromkeys(row["teacher"] for row in rows):
        own = [row for row in rows if row["teacher"] == teacher]
        models = _find(own, "models")
        if models is None or models.get("teacher_gb") is None:
            notes = [f"teacher {teacher}: {row['note']}" for row in own if row.get("note")]
            parts.append("; ".join(notes))
            continue
        parts.append(
            f"{models['shapes']}; teacher {teacher} ({models['teacher_gb']} GB), student float32 "
            f"({models['student_gb']} GB), bf16 autocast, layers recomputed, {models['optimizer']}."
        )
        lines = [
            "| tokens | step | time | tokens/s | utilisation | peak | by SFT + teacher forward | by prediction |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in own:
            if row["way"] not in STEP_WAYS:
                continue
            speed = "–" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:,.0f}"
            lines.append(
                f"| {row['S']:,} | {STEP_WAYS[row['way']]} | {_time(row)} | {speed} | {_percent(row['utilisation'])} | "
                f"{_gigabytes(row, 'peak_gb')} | {_times(row.get('ratio'))} | {_times(row.get('over_prediction'))} |"
            )
        parts.append("\n".join(lines))
        last = _find(own, "optimiser")
        if last is not None:
            parts.append(
                f"The optimiser's step ({last['optimizer']}): {_time(last)}; peak with it at {last['S']:,} tokens "
                f"{_gigabytes(last, 'peak_gb')} of {_gigabytes(last, 'device_gb')}."
            )
    return "\n\n".join(part for part in parts if part)


def _plan(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = ["| plan of | predicted | measured | off by |", "|---|---|---|---|"]
    for row in rows:
        if row.get("note"):
            lines.append(f"| {row['case']} | {_cell(row['note'])} | | |")
            continue
        lines.append(
            f"| {row['case']} | {_gigabytes(row, 'predicted_gb')} | {_gigabytes(row, 'measured_gb')} | "
            f"{_percent(row['error'])} |"
        )
    return "\n".join(lines)


_TABLES = {"attention": _attention, "steps": _steps, "linear": _linear, "plan": _plan}


def _find(rows: Sequence[Row], way: str, **where: Any) -> Row | None:
    matching = (row for row in rows if row["way"] == way and all(row[name] == value for name, value in where.items()))
    return next(matching, None)


def _time(row: Row) -> str:
    if row.get("median_s") is None:
        return _cell(row.get("note") or "–")
    seconds = row["median_s"]
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{seconds * 1e3:.3f} ms"


def _share(row: Row) -> str:
    return _percent(row.get("share"))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}".replace("%", " %")


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}×"


def _gigabytes(row: Row, name: str) -> str:
    value = row.get(name)
    return "–" if value is None else f"{value:.2f} GB"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:120]
