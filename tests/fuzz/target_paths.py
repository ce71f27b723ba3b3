"""What a path in a recipe means: local, on the Hub, or nothing."""

from __future__ import annotations

import os
from pathlib import Path

from fuzz.scaffold import Target
from preceptor.data.formats import detect_format
from preceptor.recipe import local_path
from preceptor.recipe.yaml_text import parse_yaml


def check(data: bytes, folder: Path) -> Path | None:
    # Quoted, so that any text gets through the recipe's YAML, or is refused there.
    text = data.decode(errors="replace").replace("\\", "\\\\").replace('"', '\\"')
    value, _ = parse_yaml(f'"{text}"', "recipe")
    (folder / "rows.jsonl").touch()
    os.environ["FUZZ_KEY"] = "sk-planted"
    try:
        path = local_path(value, folder)
    except ValueError as error:
        assert "sk-planted" not in str(error)  # noqa: PT017 - and it goes on
        raise
    assert path is None or path.is_absolute()
    if path is None:
        assert ".." not in Path(value).parts
        assert value.isascii() or "$" in value
        detect_format("data", value)
    return path


TARGET = Target(
    name="paths",
    check=check,
    seeds=[b"rows.jsonl", b"owner/name", b"$HOME/rows.csv", b"~/a/../b", b"${FUZZ_KEY}/x", b"/etc/hostname"],
    words=[b"../", b"~root", b"${", b"}", b"$HOME", b"/" * 300, b"a" * 300, b"://", b"C:\\", b"\xcf\x83"],
)
