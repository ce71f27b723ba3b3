"""One sentence for each mistake: where in the file, what was given, what is accepted, how to mend it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from preceptor.errors import accepted, did_you_mean, shown
from preceptor.recipe.base import KeyPath
from preceptor.recipe.objective import TERMS
from preceptor.recipe.overrides import Applied
from preceptor.recipe.stages import KINDS
from preceptor.recipe.yaml_text import Lines

_TYPES = {
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a mapping of keys to values",
    "list_type": "a list",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "mapping_type": "a mapping of keys to values",
}


@dataclass(frozen=True)
class Source:
    """Where a recipe's values came from: the file, the line of each key, the overrides set on top."""

    name: str
    lines: Lines = field(default_factory=dict)
    applied: Applied = field(default_factory=dict)

    def sentence(self, path: KeyPath, what: str) -> str:
        """`what` is wrong at `path`, named with its file and line, or with the override that set it."""
        dotted = ".".join(map(str, path)) or "the recipe"
        for length in range(len(path), 0, -1):
            if path[:length] in self.applied:
                return f"override {self.applied[path[:length]]!r}: {dotted} {what}"
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return f"{self.name}:{self.lines[path[:length]]}: {dotted} {what}"
        return f"{self.name}: {dotted} {what}"


def sentence_for(error: ErrorDetails, raw: Any, root: type[BaseModel], source: Source) -> str:
    """The sentence for one pydantic error about the value `raw` of a recipe."""
    path = _path_in_file(error["loc"], raw)
    given = error["input"]
    kind = error["type"]
    context = error.get("ctx", {})
    if kind == "missing":
        if isinstance(given, Mapping) and path and path[-1] in given:  # e.g. `data: {shop: }` reads as null
            return source.sentence(path, "is empty; write its value")
        return source.sentence(path, "is missing; add it")
    if kind == "extra_forbidden":
        parent = path[:-1]
        keys = _keys_of(parent, raw, root, path[-1])
        hint = did_you_mean(path[-1], keys)
        return source.sentence(path, f"is not a key that exists here{hint}; accepted are {accepted(keys)}")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        kinds = list(TERMS if "objective" in path else KINDS)
        if kind == "union_tag_not_found" or not isinstance(given, Mapping):
            what = f"is {shown(given)}; write a mapping with kind: {accepted(kinds)}"
            if isinstance(given, Mapping):
                what = f"has no kind; add kind: {accepted(kinds)}"
            return source.sentence(path, what)
        tag = given.get("kind")
        hint = did_you_mean(tag, kinds)
        return source.sentence((*path, "kind"), f"is {shown(tag)}; write {accepted(kinds)}{hint}")
    if kind == "broken_rule":
        message = str(context["message"])
        joined = message if message.startswith(("has ", "is ", "names ")) else f"is wrong: {message}"
        return source.sentence(path, joined)
    if kind == "wanted":
        return source.sentence(path, f"is {_given(given)}; write {context['what']}")
    if kind in _TYPES:
        return source.sentence(path, f"is {_given(given)}; write {_TYPES[kind]}")
    return source.sentence(path, f"is {_given(given)}; {error['msg']}")


def _given(value: Any) -> str:
    return "empty" if value is None else shown(value)


def _path_in_file(loc: tuple[int | str, ...], raw: Any) -> KeyPath:
    """The location pydantic gives, without tags of unions and keys that bare strings stand for."""
    path: list[int | str] = []
    here = raw
    for index, step in enumerate(loc):
        last = index == len(loc) - 1
        if isinstance(here, dict):
            if step in here:
                here = here[step]
            elif step == "[key]" or not last or here.get("kind") == step:  # the tag of a discriminated union
                continue
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
        else:
            continue  # below a scalar: the key that a bare string stands for
        path.append(step)
    return tuple(path)


def _keys_of(path: KeyPath, raw: Any, root: type[BaseModel], refused: int | str) -> list[str]:
    """The keys accepted in the mapping at `path`, of which `refused` is none."""
    spec: type[BaseModel] | None = root
    here = raw
    for index, step in enumerate(path):
        here = here[step]
        if path[:1] == ("stages",) and index == 1:
            spec = KINDS.get(str(here.get("kind"))) if isinstance(here, dict) else None
        elif len(path) > 2 and path[2] == "objective" and index == 3:
            spec = TERMS.get(str(here.get("kind"))) if isinstance(here, dict) else None
        elif spec is not None and isinstance(step, str) and index != 0:
            # A step that is no field is a name of the user's, as that of a route is.
            spec = _fitting(_specs_in(spec, step) if step in _keys(spec) else [spec], here, refused)
        elif index == 0 and path[0] == "overlap":
            spec = _fitting(_specs_in(root, "overlap"), here, refused)
        if path[:1] == ("data",) and index == 1:
            from preceptor.recipe.data import DatasetSpec

            spec = DatasetSpec
    return [] if spec is None else _keys(spec)


def _keys(spec: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in spec.model_fields.items()]


def _specs_in(spec: type[BaseModel], key: str) -> list[type[BaseModel]]:
    """The spec classes inside a field's annotation (such as `LoraSpec | None`), in their order."""
    info = spec.model_fields.get(key)
    pending: list[Any] = [] if info is None else [info.annotation]
    found: list[type[BaseModel]] = []
    while pending:
        annotation = pending.pop(0)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        pending.extend(getattr(annotation, "__args__", ()))
    return found


def _fitting(specs: list[type[BaseModel]], value: Any, refused: int | str) -> type[BaseModel] | None:
    """Of `specs` and what stands in their fields, the one with most of the keys that `value` has.

    A spec that knows the key `refused` is not the one that refused it.
    """
    nested = [inner for spec in specs for key in spec.model_fields for inner in _specs_in(spec, key)]
    given = set(value) if isinstance(value, dict) else set()
    return max(
        [*specs, *nested], key=lambda spec: (refused not in _keys(spec), len(given & set(_keys(spec)))), default=None
    )
