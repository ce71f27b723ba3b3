"""The recipe loader: any bytes as a recipe file."""

from __future__ import annotations

from pathlib import Path

from fuzz.scaffold import Target
from preceptor.recipe import Recipe, load_recipe

GOOD = b"""name: shop
seed: 43
data:
  general: {path: owner/chats, split: train_sft, holdout: 500}
  shop: {path: owner/shop, holdout: 500, role: domain}
stages:
  kd:
    kind: distill
    student: owner/small
    teacher: owner/large
    data: general
    objective: [{kind: logits}, {kind: attention}]
    rows_per_step: 64
    training: {learning_rate: 2.0e-5, num_train_epochs: 2}
  expert: {kind: sft, model: stage:kd, data: shop, lora: {r: 64}}
  dae:
    kind: distill
    student: stage:kd
    teacher: {routes: {shop: stage:expert, general: stage:kd}}
    data: {shop: 0.1, general: 0.9}
    objective: [{kind: logits}]
  scores: {kind: evaluate, models: [stage:kd, stage:dae], reference: stage:kd, on: [general, shop]}
"""


def check(data: bytes, folder: Path) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_bytes(data)
    return load_recipe(file)


TARGET = Target(
    name="recipe",
    check=check,
    seeds=[GOOD, b"name: x\nstages: {a: {kind: init}}\n"],
    words=[b"stage:", b"&a ", b"*a", b"<<: ", b"kind: ", b"!!python/object:os.system ", b"---\n", b"0x", b"- "],
)
