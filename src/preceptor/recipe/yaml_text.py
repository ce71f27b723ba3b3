"""YAML as recipes use it: a strict, bounded subset, with the line of every key.

Differences from a plain safe loader, each because of a mistake people make:

- scalars follow YAML 1.2, so `1e-5` is a number, and `on`, `no` and `2024-01-01` are text;
- a key given twice, a key that is not text, and any tag are errors;
- a file over 1 MiB, nesting over 64 levels, over 100,000 values (aliases unfolded), whole numbers that need more than
  64 bits, and text with characters that no file or path can hold are errors.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from preceptor.errors import InputError, shown
from preceptor.recipe.base import KeyPath

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_VALUES = 100_000
MAX_NUMBER = 2**63 - 1
UNHOLDABLE = re.compile("[\x00\ud800-\udfff]")

Lines = dict[KeyPath, int]


class _Loader(yaml.SafeLoader):
    """A safe loader that resolves plain scalars as YAML 1.2 does."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - as in the parent class; a fresh table instead of YAML 1.1's
    composed = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self.composed += 1
        if self.composed > MAX_VALUES:  # before all of them are held
            raise yaml.MarkedYAMLError(
                problem=f"it has more than {MAX_VALUES:,} values", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def read_yaml(path: Path) -> tuple[Any, Lines]:
    """The value of a YAML file, and the line (from 1) of each key path in it. Raises InputError."""
    if "\0" in str(path):
        raise InputError(f"{path}: is no name a file can have; give the path of a recipe (YAML)")
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; give the recipe file in it")
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe may never end, and a device has no end
            raise InputError(f"{path}: is no regular file; save the recipe to a file first")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(f"{path}: has more than {MAX_BYTES:,} bytes; a recipe has fewer")
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; give the path of a recipe (YAML)") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its path and permissions") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> tuple[Any, Lines]:
    """The value of a YAML text, and the line (from 1) of each key path in it; `source` names it in errors."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
        reader = _Reader(source)
        value = reader.value(node, (), 0) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = error.problem or error.context or "cannot be read"
        if error.context and problem.startswith("but "):
            problem = f"{error.context}, {problem}"
        column = f" at column {mark.column + 1}" if mark else ""
        raise InputError(f"{where}: is not YAML: {problem}{column}; mend the line or the one above it") from None
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise InputError(f"{source}: is not YAML: {problem}; save it as plain UTF-8 text") from None
    except RecursionError:
        raise InputError(f"{source}: is nested deeper than {MAX_DEPTH} levels; a recipe needs about 6") from None
    return value, reader.lines


class _Reader:
    """Turns composed YAML nodes into plain values, counting as it goes."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: Lines = {}
        self._count = 0

    def value(self, node: Node, path: KeyPath, depth: int) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise self._error(node, f"aliases unfold to more than {MAX_VALUES:,} values; write them out")
        if depth > MAX_DEPTH:
            raise self._error(node, f"is nested deeper than {MAX_DEPTH} levels (or an alias holds itself)")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path, depth)
        if isinstance(node, SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.value(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        raise self._error(node, f"has the tag {node.tag!r}; remove the tag")

    def _mapping(self, node: MappingNode, path: KeyPath, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                inherited = self.value(value_node, path, depth + 1)
                for block in inherited if isinstance(inherited, list) else [inherited]:
                    if not isinstance(block, dict):
                        raise self._error(key_node, "'<<' takes a mapping or a list of mappings")
                    merged = {**block, **merged}
                continue
            key = self._scalar(key_node) if isinstance(key_node, ScalarNode) else None
            if not isinstance(key, str):
                given = shown(key_node.value) if isinstance(key_node, ScalarNode) else "a list or mapping"
                raise self._error(key_node, f"{given} is a key but not text; put it in quotes")
            if key in result:
                raise self._error(key_node, f"the key {key!r} is given twice; remove one of them")
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = self.value(value_node, (*path, key), depth + 1)
        return {**merged, **result}

    def _scalar(self, node: ScalarNode) -> Hashable:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        text: str = node.value
        if UNHOLDABLE.search(text):
            raise self._error(node, f"{shown(text)} holds a character that no path or file can; remove it")
        try:
            if kind in ("str", "merge"):
                return text
            if kind == "null" and text.lower() in ("", "~", "null"):
                return None
            if kind == "bool" and text.lower() in ("true", "false"):
                return text.lower() == "true"
            if kind == "int":
                number = int(text, 0) if text[:2] in ("0x", "0o") else int(text)
                if abs(number) > MAX_NUMBER:
                    raise ValueError
                return number
            if kind == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            what = "is too large a number" if kind == "int" else "is not a number"
            raise self._error(node, f"{shown(text)} {what}; mend it or put it in quotes") from None
        raise self._error(node, f"{shown(text)} has the tag {node.tag!r}; remove the tag")

    def _error(self, node: Node, sentence: str) -> InputError:
        return InputError(f"{self.source}:{node.start_mark.line + 1}: {sentence}")
