"""`key=value` on the command line: changes any leaf of a recipe before it is validated."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from preceptor.errors import InputError, InputErrors, did_you_mean, shown
from preceptor.recipe.base import KeyPath
from preceptor.recipe.yaml_text import MAX_DEPTH, UNHOLDABLE, parse_yaml

Applied = dict[KeyPath, str]

# Where a bare string stands for a model's path, `student.dtype=...` has to widen it first: these keys of a stage, and
# what lies below them (`teacher.routes.shop`, `experts.0`).
_MODEL_KEYS = ("model", "student", "teacher", "experts", "base", "models", "reference", "expert")


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], Applied]:
    """A copy of `raw` with each `key=value` set, and which override set which key path.

    Keys are joined by dots and list items counted from 0 (`stages.kd.objective.1.weight=0.5`); values are
    YAML (`stages.kd.data={shop: 0.1, general: 0.9}`). Datasets, stages and list items must exist; keys of a
    spec may be new, and the validation that follows knows whether they are right. Raises InputErrors with
    all that is wrong.
    """
    result = copy.deepcopy(raw)
    applied: Applied = {}
    errors: list[str] = []
    for override in overrides:
        try:
            key, separator, text = override.partition("=")
            if not separator or not key.strip():
                raise InputError(
                    f"override {override!r}: is not KEY=VALUE; write it such as stages.kd.training.learning_rate=1e-5"
                )
            value, _ = parse_yaml(text, f"override {override!r}")
            applied[_set(result, key.strip(), value, override)] = override
        except InputError as error:
            errors.append(str(error))
    if errors:
        raise InputErrors(errors)
    return result, applied


def _set(root: dict[str, Any], key: str, value: Any, override: str) -> KeyPath:
    path: KeyPath = ()
    here: Any = root
    rest = key.split(".")
    if len(rest) > MAX_DEPTH or UNHOLDABLE.search(key):
        raise InputError(
            f"override {shown(override)}: no key of a recipe is {shown(key)}; write one such as stages.kd.rows_per_step"
        )
    while True:
        step, rest = _next_step(here, path, rest, override)
        path = (*path, step)
        if not rest:
            here[step] = value
            return path
        # Only a leaf's direct parents may be absent (`training:` of a stage); datasets and stages may not.
        if isinstance(here, dict) and here.get(step) is None:
            here[step] = {}
        elif isinstance(here[step], str) and path[0] == "stages" and len(path) > 2 and path[2] in _MODEL_KEYS:
            here[step] = {"path": here[step]}
        here = here[step]


def _next_step(here: Any, path: KeyPath, rest: list[str], override: str) -> tuple[str | int, list[str]]:
    where = ".".join(map(str, path)) or "the recipe"
    if isinstance(here, list):
        # Not isdigit(), which takes ² for a digit; and int() refuses thousands of them.
        if not re.fullmatch("[0-9]{1,9}", rest[0]) or int(rest[0]) >= len(here):
            raise InputError(
                f"override {override!r}: {where} has {len(here)} items, so {rest[0]!r} is none of them; "
                f"write a number from 0 to {len(here) - 1}"
            )
        return int(rest[0]), rest[1:]
    if not isinstance(here, dict):
        raise InputError(f"override {override!r}: {where} is {shown(here)}, which has no keys; set {where} itself")
    # Names may hold dots, so the longest run of parts that is a key wins.
    for length in range(len(rest), 0, -1):
        joined = ".".join(rest[:length])
        if joined in here:
            return joined, rest[length:]
    if path in (("data",), ("stages",)):
        known = ", ".join(here) or "none"
        raise InputError(
            f"override {override!r}: there is no {rest[0]!r} in {where}{did_you_mean(rest[0], here)}; it has {known}"
        )
    return rest[0], rest[1:]
