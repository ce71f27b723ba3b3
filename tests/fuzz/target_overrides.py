"""`key=value` on the command line, set on a good recipe."""

from __future__ import annotations

from pathlib import Path

from fuzz.scaffold import Target
from fuzz.target_recipe import GOOD
from preceptor.recipe import Recipe, parse_recipe
from preceptor.recipe.yaml_text import parse_yaml

RAW, _ = parse_yaml(GOOD.decode(), "good")


def check(data: bytes, folder: Path) -> Recipe:
    # As the operating system hands over what is no UTF-8.
    words = [word.decode("utf-8", "surrogateescape") for word in data.split(b"\0") if word]
    return parse_recipe(RAW, folder=folder, overrides=words)


TARGET = Target(
    name="overrides",
    check=check,
    seeds=[
        b"stages.kd.training.learning_rate=1e-5\0seed=1",
        b"stages.kd.objective.1.weight=0.5\0stages.dae.data={shop: 0.2, general: 0.8}",
        b"stages.expert.model.dtype=bfloat16\0stages.kd.teacher=null\0data.shop.where.task=[1, 2]",
    ],
    words=[b"stages.", b"data.", b".__class__=", b"\xc2\xb2", b".0.", b"=", b"{", b"&a", b"\\ud800"],
)
