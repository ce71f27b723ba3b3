"""From a file and the command line's overrides to a validated recipe, or to every error in it at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from preceptor.errors import MOST_AT_ONCE, InputErrors
from preceptor.recipe.base import KeyPath
from preceptor.recipe.check import check
from preceptor.recipe.data import DatasetSpec, OverlapSpec
from preceptor.recipe.messages import Source, sentence_for
from preceptor.recipe.overrides import apply_overrides
from preceptor.recipe.recipe import Recipe
from preceptor.recipe.stages import Stage
from preceptor.recipe.yaml_text import read_yaml
from preceptor.system.secret_text import secrets_in

MAX_NAMES = 1000
_STAGE: TypeAdapter[Any] = TypeAdapter(Stage)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and validates a recipe; `overrides` are `key=value` texts as on the command line.

    Nothing is loaded or looked up besides the file itself. Raises InputError when the file cannot be read
    as YAML and InputErrors with one sentence for each mistake in it.
    """
    raw, lines = read_yaml(Path(path))
    if not isinstance(raw, dict):
        what = "is empty" if raw is None else f"holds {type(raw).__name__} and not keys with values"
        raise InputErrors([f"{path}: {what}; a recipe begins with name:, data: and stages:"])
    changed, applied = apply_overrides(raw, overrides)
    source = Source(str(path), lines, applied)
    recipe = _validated(changed, source, Path(path).resolve().parent)
    recipe._overrides = tuple(overrides)
    return recipe


def parse_recipe(
    raw: Mapping[str, Any],
    *,
    folder: Path | None = None,
    name: str = "recipe",
    overrides: Sequence[str] = (),
    again: str | None = None,
) -> Recipe:
    """Validates a recipe given as a mapping; relative paths are looked for in `folder` first.

    `name` is what errors call it, `overrides` are `key=value` texts as on the command line, and `again` is the command
    that runs it, if it is no recipe file's. Raises InputErrors.
    """
    changed, applied = apply_overrides(dict(raw), overrides)
    recipe = _validated(changed, Source(name, applied=applied), (folder or Path.cwd()).resolve())
    recipe._overrides, recipe._again = tuple(overrides), again
    return recipe


def _validated(raw: dict[str, Any], source: Source, folder: Path) -> Recipe:
    # Before anything else is said, for messages repeat what they are about; as do those of overrides.
    unapplied = Source(source.name, source.lines)
    if secrets := [unapplied.sentence(path, what) for path, what in islice(secrets_in(raw), MOST_AT_ONCE)]:
        raise InputErrors(secrets)
    for key in ("data", "stages"):
        if (number := len(_section(raw, key))) > MAX_NAMES:
            raise InputErrors([source.sentence((key,), f"has {number:,} names; a recipe has at most {MAX_NAMES:,}")])
    errors: list[str] = []
    unsaid, recipe = 0, None
    try:
        recipe = Recipe.model_validate(raw)
        errors = [source.sentence(path, what) for path, what in islice(_not_finite(raw), MOST_AT_ONCE)]
    except ValidationError as invalid:
        found = invalid.errors(include_url=False)
        errors = [sentence_for(error, raw, Recipe, source) for error in found[:MOST_AT_ONCE]]
        unsaid = len(found) - MOST_AT_ONCE
    # References are checked between the parts that are valid, so that one typing mistake does not hide them.
    datasets = {name: _part(TypeAdapter(DatasetSpec), value) for name, value in _section(raw, "data").items()}
    stages = {name: _part(_STAGE, value) for name, value in _section(raw, "stages").items()}
    overlap = _part(TypeAdapter(OverlapSpec), raw.get("overlap"))
    runs_dir = raw.get("runs_dir")
    for path, what in check(datasets, stages, overlap, runs_dir if isinstance(runs_dir, str) else None):
        errors.append(source.sentence(path, what))
    if errors or recipe is None:
        raise InputErrors(list(dict.fromkeys(errors)), max(unsaid, 0))
    recipe._folder, recipe._source, recipe._raw = folder, source.name, raw
    return recipe


def _not_finite(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Where mappings of any content (`where`, `training`) hold numbers that the record of a run could not spell."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, f"is {value}; write a finite number"
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(item, (*path, key))


def _section(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = raw.get(key)
    return section if isinstance(section, dict) else {}


def _part(adapter: TypeAdapter[Any], value: Any) -> Any:
    """The validated part, or None where it is absent or invalid (its errors are already reported).

    A part that is right but for some keys that may be left out is checked without them.
    """
    if value is None:
        return None
    try:
        return adapter.validate_python(value)
    except ValidationError as invalid:
        wrong = {step for error in invalid.errors(include_url=False) for step in error["loc"][:2]}
    if not isinstance(value, dict) or not wrong & value.keys() - {"kind"}:
        return None
    return _part(adapter, {key: item for key, item in value.items() if key not in wrong})
