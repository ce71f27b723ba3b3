"""The plan as text for a terminal."""

from __future__ import annotations

from typing import Any

from preceptor.plan.render_needs import needs_lines

_ONE = {"passes": "pass", "rows": "row", "shares": "share", "targets": "target", "tokens": "token"}


def render(result: dict[str, Any]) -> str:
    """The plan as text for a terminal."""
    lines = [f"{result['name']} -> {result['directory']}, seed {result['seed']}"]
    for name, stage in result["stages"].items():
        reads = f", reads {', '.join(stage['reads'])}" if stage["reads"] else ""
        state = " (done)" if stage["done"] else ""
        if stage["changed"]:
            state = f" (finished with another recipe or other data; a run needs --redo {name})"
        lines += ["", f"{name}: {stage['kind']}{reads}{state}"]
        for key, model in stage["models"].items():
            parts = [str(model[part]) for part in ("path", "architecture", "dtype") if model.get(part)]
            if model.get("adapter"):
                parts[0] += f" with {model['adapter']}"
            missing = f"; weights {model['weights']}" if "weights" in model else ""
            lines.append(f"  {key}: {', '.join([*parts, _amount(model['parameters'], 'parameters')])}{missing}")
        for dataset, data in stage.get("data", {}).items():
            lines += _dataset_lines(dataset, data)
        if "bytes" in stage:
            low, high = (f"{size / 1e6:,.1f}" for size in stage["bytes"])
            size = low if low == high else f"{low} to {high}"
            lines.append(f"  the store: {_amount(stage['targets'], 'targets')}, {size} MB")
        lines += [f"  {suite}: {what}" for suite, what in stage.get("suites", {}).items()]
        if "rows_per_epoch" in stage:
            steps = f", {stage['steps_per_epoch']:,} steps of {stage['rows_per_step']}" if "epoch" in stage else ""
            lines.append(f"  an epoch: {_amount(stage['rows_per_epoch'], 'rows')}{steps}")
        for dataset, share in stage.get("epoch", {}).items():
            lines.append(f"    {dataset}: " + ", ".join(_amount(count, what) for what, count in share.items()))
        lines += needs_lines(stage)
    return "\n".join(lines)


def _dataset_lines(name: str, data: Any) -> list[str]:
    if isinstance(data, str):
        return [f"  {name}: {data}"]
    counts = ", ".join(_amount(data[what], what) for what in ("rows", "tokens", "targets"))
    kept = "".join(f", {data[what]:,} {what}" for what in ("holdout", "test") if data[what])
    dropped = "".join(f"; dropped {count:,}: {reason}" for reason, count in data["dropped"].items())
    sample = data["sample"] or "no row"
    return [f"  {name}: {counts}{kept}{dropped}", "    " + _short(sample).replace("\n", "\n    ")]


def _short(sample: str, limit: int = 1200) -> str:
    if len(sample) <= limit:
        return sample
    return f"{sample[: limit // 2]} … {sample[-limit // 2 :]}"


def _amount(value: Any, what: str) -> str:
    if value == 1:
        what = _ONE.get(what, what)
    if isinstance(value, float):
        return f"{value:.3g} {what}"
    return f"{value:,} {what}" if isinstance(value, int) else str(value)
