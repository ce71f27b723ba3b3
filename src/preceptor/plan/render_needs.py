"""What a stage needs, in a few lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from textwrap import wrap
from typing import Any

_WIDTH = 80

_NAMES = {
    "weights": "weights",
    "teacher_weights": "teacher's weights",
    "gradients": "gradients",
    "optimizer": "optimiser",
    "activations": "activations",
    "signals": "teacher's signals",
    "workspaces": "losses",
    "overhead": "device overhead",
}


def needs_lines(stage: Mapping[str, Any]) -> list[str]:
    """Lines on memory, time, tokens and disk, for the block of one stage."""
    memory = stage.get("memory")
    if memory is None:
        return []
    if "unknown" in memory:
        what = "memory, time" if "time" in stage else "memory"
        return [f"  {what}: unknown: {memory['unknown']}"]
    return [line for each in [*_memory(memory), *_time(stage), *_disk(stage)] for line in _wrapped(each)]


def _wrapped(line: str) -> list[str]:
    """A line in as many as it takes, those after the first further in; a number and its unit stay together."""
    inside = " " * (len(line) - len(line.lstrip()) + 2)
    whole = re.sub(r"(?<=\d) (?=[A-Za-z])", "\N{NO-BREAK SPACE}", line)
    lines = wrap(whole, _WIDTH, subsequent_indent=inside, break_long_words=False, break_on_hyphens=False)
    return [each.replace("\N{NO-BREAK SPACE}", " ") for each in lines]


def _memory(memory: Mapping[str, Any]) -> list[str]:
    where = "a GPU" if memory["device"] == "cuda" else "this machine"
    if memory["devices"] > 1:
        where = f"each of {memory['devices']} devices ({memory['engine']})"
    parts = ", ".join(f"{_NAMES[name]} {size(each)}" for name, each in memory["parts"].items() if each)
    batch = memory["micro_batch"]
    assumed = ", as long as they may be" if batch["assumed"] else ""
    rows = "the longest row" if batch["rows"] == 1 else f"the {batch['rows']} longest rows"
    lines = [
        f"  memory of {where}: {size(memory['needed'])} of {size(memory['available'])} at the peak ({memory['phase']})",
        f"    {parts}",
        f"    with {rows} in a pass ({batch['tokens']:,} tokens{assumed})",
    ]
    if memory["fits"]:
        return lines
    lines.append(f"    does not fit: needs {size(memory['needed'])} of {size(memory['available'])}; what helps:")
    for each in memory.get("helps", []):
        fits = ", and fits" if each["needed"] <= memory["available"] else ""
        lines.append(f"      {each['change']} saves {size(each['saves'])} (needs {size(each['needed'])}{fits})")
    if (all_ := memory.get("together")) is not None:
        fits = ", and fits" if all_["needed"] <= memory["available"] else ", and does not fit"
        lines.append(f"      together: {all_['change']}: needs {size(all_['needed'])}{fits}")
    if not memory.get("helps"):
        lines.append("      nothing that was tried; take a smaller model, or more devices with `fsdp`")
    if memory.get("not_tried"):
        lines.append(f"      not tried for want of time: {', '.join(memory['not_tried'])}")
    return lines


def _time(stage: Mapping[str, Any]) -> list[str]:
    time = stage.get("time")
    if time is None:
        return []
    rate = f"{operations(time['flops_per_second'])}/s, {time['rate']}"
    step = f"{duration(time['step_seconds'])} a step: {operations(time['flops_per_step'])} at {rate}"
    if time["steps"] is None:
        return [f"  time: {step}"]
    tokens = stage.get("tokens")
    count = "" if tokens is None else f", {tokens['total']:,} tokens"
    return [f"  time: {duration(time['seconds'])} for {time['steps']:,} steps{count}", f"    {step}"]


def _disk(stage: Mapping[str, Any]) -> list[str]:
    disk = stage.get("disk")
    if disk is None:
        return []
    return [f"  disk: {size(disk['total'])}: checkpoints {size(disk['checkpoints'])}, result {size(disk['model'])}"]


def size(count: float) -> str:
    """Bytes in the unit that reads best (1 GB = 10^9 bytes)."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.3g} {unit}" if count < 1000 * factor else f"{count / factor:,.0f} {unit}"
    return f"{count:.0f} B"


def operations(count: float) -> str:
    """Floating-point operations in the unit that reads best."""
    for unit, factor in (("TFLOP", 1e12), ("GFLOP", 1e9)):
        if count >= factor:
            return f"{count / factor:,.3g} {unit}" if count < 1000 * factor else f"{count / factor:,.0f} {unit}"
    return f"{count / 1e6:,.3g} MFLOP"


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    for unit, factor in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
