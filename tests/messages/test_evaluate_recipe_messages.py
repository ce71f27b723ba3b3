"""What is refused of `evaluate`, `compose` and `distill` stages when a recipe is read."""

from __future__ import annotations

from typing import Any

import pytest

from preceptor.errors import InputErrors
from preceptor.recipe import EvaluateStage, parse_recipe

SCORES = {"kind": "evaluate", "models": {"a": "m"}, "on": ["shop"]}
DATA = {"shop": {"path": "shop.jsonl", "holdout": 2}}


def refused(stage: dict[str, Any]) -> str:
    with pytest.raises(InputErrors) as caught:
        parse_recipe({"name": "r", "data": DATA, "stages": {"s": stage}})
    return str(caught.value)


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "a dataset twice": (
        {**SCORES, "on": ["shop", "shop"]},
        "recipe: stages.s names 'shop' twice in `on`, whose rows would count twice; name it once",
    ),
    "names of one file": (
        {**SCORES, "models": {"a": "m", "A": "n"}},
        "recipe: stages.s has models called 'a' and 'A', whose predictions would be one file on some systems; give "
        "them names that differ in more than capitals",
    ),
    "average with keys": (
        {"kind": "compose", "experts": ["a", "b"], "base": {"path": "average", "dtype": "float32"}},
        "recipe: stages.s is wrong: base is the word `average`, the experts' mean, which has no keys; write base: "
        "average",
    ),
    "a path beside routes": (
        {"kind": "distill", "student": "a", "data": "shop", "teacher": {"routes": {"shop": "b"}, "path": "c"}},
        "recipe: stages.s.teacher.path is not a key that exists here; accepted are routes or default",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence(case: str) -> None:
    stage, sentence = CASES[case]
    assert refused(stage) == sentence


def test_a_reference_never_takes_the_place_of_a_model_of_that_name() -> None:
    stage = {**SCORES, "models": {"reference": "x", "model": "y"}, "reference": "z/model"}
    spec = parse_recipe({"name": "r", "data": DATA, "stages": {"s": stage}}).stages["s"]
    assert isinstance(spec, EvaluateStage)
    assert {name: model.path for name, model in spec.named.items()} == {
        "reference": "x",
        "model": "y",
        "reference.2": "z/model",
    }
    assert spec.name_of(spec.reference) == "reference.2"
