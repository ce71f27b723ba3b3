"""Wrong recipes of the second stage: each gives its sentence, exit code 2, no traceback, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

import preceptor
import toys
from invariant import routed_recipes
from preceptor.errors import InputError
from preceptor.objective import Attention, Logits, NextToken, Objective
from preceptor.recipe import parse_recipe
from preceptor.stages.ahead import check_ahead
from preceptor.teachers import ModelTeacher, RoutedTeacher
from refusals import check_refusal

GOOD = """\
name: shop
data:
  general: {path: general.jsonl, holdout: 5}
  shop: {path: shop.jsonl, test: shop_test.jsonl, role: domain}
  notes: {path: notes.jsonl}
stages:
  kd: {kind: sft, model: base, data: general}
  expert: {kind: sft, model: stage:kd, data: shop, lora: {r: 4}}
  written: {kind: generate, model: stage:kd, rows: 5}
  early: {kind: evaluate, models: [stage:kd], on: [general]}
  dae:
    kind: distill
    student: stage:kd
    teacher: {routes: {shop: stage:expert, general: stage:kd}}
    data: {general: 0.9, shop: 0.1}
    objective: [{kind: logits}]
  double: {kind: compose, experts: [stage:kd, stage:dae]}
  between: {kind: merge, models: [stage:kd, stage:dae], alpha: 0.5}
  scores:
    kind: evaluate
    models: [stage:kd, stage:dae]
    reference: stage:kd
    expert: stage:expert
    on: [general, shop]
"""
SHARES = "[{model: stage:expert, weight: 0.5}, {model: stage:kd, weight: 0.5}]"
PATHS = "path, revision, dtype, quantization, adapter, device_map, sharded or trust_remote_code"

# what is wrong: (text in GOOD, what replaces it, the sentence after "FILE:")
CASES: dict[str, tuple[str, str, str]] = {
    # --- routes of teachers
    "a route without a teacher": (
        ", general: stage:kd}}",
        "}}",
        "14: stages.dae.teacher.routes has no teacher for general, whose rows a term follows; add general: MODEL or a "
        "`default` teacher, or give the terms `routes` without it",
    ),
    "a teacher of an unknown route": (
        "{routes: {shop:",
        "{routes: {shpo: stage:kd, shop:",
        "14: stages.dae.teacher.routes.shpo is a route without rows: it is no dataset of this stage (did you mean "
        "'shop'?); there is general, shop",
    ),
    "a dataset of the recipe that the stage does not train on": (
        "{routes: {shop:",
        "{routes: {notes: stage:kd, shop:",
        "14: stages.dae.teacher.routes.notes is a route without rows: it is no dataset of this stage; there is "
        "general, shop",
    ),
    "a teacher that no term follows": (
        "{kind: logits}",
        "{kind: logits, routes: [general]}",
        "14: stages.dae.teacher.routes.shop is used by no term: those that follow a teacher leave the route out; "
        "remove it here, or name it there",
    ),
    "a default for nobody": (
        "general: stage:kd}}",
        "general: stage:kd}, default: stage:kd}",
        "14: stages.dae.teacher.default is used by no row: every route has a teacher of its own; remove it",
    ),
    "teachers without a term": (
        "{kind: logits}",
        "{kind: next_token}",
        "14: stages.dae.teacher is followed by no term; add one to `objective`, such as {kind: logits}",
    ),
    "weights that do not sum to 1": (
        "{shop: stage:expert",
        "{shop: [{model: stage:expert, weight: 0.5}, {model: stage:kd, weight: 0.4}]",
        "14: stages.dae.teacher.routes.shop is wrong: the weights of its teachers sum to 0.9; change them so that "
        "they sum to 1",
    ),
    "one teacher with half the weight": (
        "{shop: stage:expert",
        "{shop: [{model: stage:expert, weight: 0.5}]",
        "14: stages.dae.teacher.routes.shop is wrong: the weights of its teachers sum to 0.5; change them so that "
        "they sum to 1",
    ),
    "a weight of nothing": (
        "{shop: stage:expert",
        "{shop: [{model: stage:expert, weight: 1}, {model: stage:kd, weight: 0}]",
        "14: stages.dae.teacher.routes.shop.1.weight is 0; write a number above 0",
    ),
    "a weight left out": (
        "{shop: stage:expert",
        "{shop: [{model: stage:expert}]",
        "14: stages.dae.teacher.routes.shop.0.weight is missing; add it",
    ),
    "several teachers without weights": (
        "{shop: stage:expert",
        "{shop: [stage:expert, stage:kd]",
        "14: stages.dae.teacher.routes.shop is ['stage:expert', 'stage:kd']; write a model, or a list such as "
        + SHARES,
    ),
    "no teacher in a list": (
        "{shop: stage:expert",
        "{shop: []",
        "14: stages.dae.teacher.routes.shop is []; write a model, or a list such as " + SHARES,
    ),
    "no route": (
        "{routes: {shop: stage:expert, general: stage:kd}}",
        "{routes: {}}",
        "14: stages.dae.teacher.routes is {}; write a mapping from routes to teachers, such as {shop: stage:expert, "
        "general: stage:kd}",
    ),
    "a list of teachers": (
        "{routes: {shop: stage:expert, general: stage:kd}}",
        "{routes: [stage:expert]}",
        "14: stages.dae.teacher.routes is ['stage:expert']; write a mapping from routes to teachers, such as "
        "{shop: stage:expert, general: stage:kd}",
    ),
    "a default alone": (
        "{routes: {shop: stage:expert, general: stage:kd}}",
        "{default: stage:kd}",
        "14: stages.dae.teacher.routes is missing; add it",
    ),
    "an unknown key beside the routes": (
        "general: stage:kd}}",
        "general: stage:kd}, defualt: stage:kd}",
        "14: stages.dae.teacher.defualt is not a key that exists here (did you mean 'default'?); accepted are routes "
        "or default",
    ),
    "an unknown key of one of several teachers": (
        "{shop: stage:expert",
        "{shop: [{model: stage:expert, weight: 1, wieght: 1}]",
        "14: stages.dae.teacher.routes.shop.0.wieght is not a key that exists here (did you mean 'weight'?); accepted "
        "are model or weight",
    ),
    "an unknown key of a route's teacher": (
        "{shop: stage:expert",
        "{shop: {path: stage:expert, dtyp: float32}",
        "14: stages.dae.teacher.routes.shop.dtyp is not a key that exists here (did you mean 'dtype'?); accepted are "
        + PATHS,
    ),
    "an unknown key of the only teacher": (
        "{routes: {shop: stage:expert, general: stage:kd}}",
        "{path: stage:kd, dtyp: float32}",
        "14: stages.dae.teacher.dtyp is not a key that exists here (did you mean 'dtype'?); accepted are " + PATHS,
    ),
    "a number for a teacher": (
        "{shop: stage:expert",
        "{shop: 3",
        "14: stages.dae.teacher.routes.shop is 3; write a folder, a Hub id, `stage:NAME`, or a mapping with `path`",
    ),
    "a teacher that is yet to come": (
        "{shop: stage:expert",
        "{shop: stage:double",
        "14: stages.dae.teacher.routes.shop is 'stage:double', but double comes after dae, and a stage reads earlier "
        "ones only (so that no circle can arise); move double above dae",
    ),
    "one of several teachers that is yet to come": (
        "{shop: stage:expert",
        "{shop: [{model: stage:kd, weight: 0.5}, {model: stage:between, weight: 0.5}]",
        "14: stages.dae.teacher.routes.shop.1.model is 'stage:between', but between comes after dae, and a stage reads "
        "earlier ones only (so that no circle can arise); move between above dae",
    ),
    "a default that is yet to come": (
        "general: stage:kd}}",
        "}, default: stage:double}",
        "14: stages.dae.teacher.default is 'stage:double', but double comes after dae, and a stage reads earlier ones "
        "only (so that no circle can arise); move double above dae",
    ),
    "the stage itself as a teacher": (
        "{shop: stage:expert",
        "{shop: stage:dae",
        "14: stages.dae.teacher.routes.shop is 'stage:dae': the stage would read its own result; name an earlier stage",
    ),
    "rows as a teacher": (
        "{shop: stage:expert",
        "{shop: stage:written",
        "14: stages.dae.teacher.routes.shop is 'stage:written', of kind generate, which gives rows; name a stage that "
        "gives a model",
    ),
    "scores as a teacher": (
        "{shop: stage:expert",
        "{shop: stage:early",
        "14: stages.dae.teacher.routes.shop is 'stage:early', of kind evaluate, which gives scores; name a stage that "
        "gives a model",
    ),
    "an unknown stage as a teacher": (
        "{shop: stage:expert",
        "{shop: stage:exprt",
        "14: stages.dae.teacher.routes.shop is 'stage:exprt', but 'exprt' is no stage (did you mean 'expert'?); there "
        "is kd, expert, written, early, dae, double, between, scores",
    ),
    "a model where a route's adapter is wanted": (
        "{shop: stage:expert",
        "{shop: {path: base, adapter: stage:kd}",
        "14: stages.dae.teacher.routes.shop.adapter is 'stage:kd', of kind sft, which gives a model; name a stage that "
        "gives an adapter",
    ),
    "an adapter on an adapter": (
        "{shop: stage:expert",
        "{shop: {path: stage:expert, adapter: stage:expert}",
        "14: stages.dae.teacher.routes.shop has an adapter on 'stage:expert', which is an adapter itself; take a stage "
        "without lora, or leave `adapter` out",
    ),
    "a term on an unknown route": (
        "{kind: logits}",
        "{kind: logits}, {kind: next_token, routes: [shopp]}",
        "16: stages.dae.objective.1.routes names 'shopp', which is no route of this stage (did you mean 'shop'?); "
        "there is general, shop",
    ),
    "a share out of range": (
        "{general: 0.9, shop: 0.1}",
        "{general: 1.1, shop: -0.1}",
        "15: stages.dae.data is wrong: the share of general is 1.1; write a number above 0 and at most 1",
    ),
    "a role that is none": (
        "role: domain",
        "role: shop",
        "4: data.shop.role is 'shop'; write domain or general",
    ),
    # --- compose and merge
    "one expert": (
        "experts: [stage:kd, stage:dae]",
        "experts: [stage:kd]",
        "17: stages.double.experts is ['stage:kd']; write a list of at least 2 models",
    ),
    "more experts per token than there are": (
        "experts: [stage:kd, stage:dae]",
        "experts: [stage:kd, stage:dae], experts_per_token: 3",
        "17: stages.double is wrong: experts_per_token is 3, but there are 2 experts; write a number from 1 to 2",
    ),
    "no expert per token": (
        "experts: [stage:kd, stage:dae]",
        "experts: [stage:kd, stage:dae], experts_per_token: 0",
        "17: stages.double.experts_per_token is 0; write a whole number of at least 1",
    ),
    "a router of hidden states without prompts": (
        "experts: [stage:kd, stage:dae]",
        "experts: [stage:kd, stage:dae], router: hidden",
        "17: stages.double is wrong: router is 'hidden', which needs `prompts`; name one dataset per expert",
    ),
    "prompts for a random router": (
        "experts: [stage:kd, stage:dae]",
        "experts: [stage:kd, stage:dae], router: random, prompts: [general, shop]",
        "17: stages.double has `prompts`, which router 'random' does not use; leave one of them out",
    ),
    "prompts for some experts": (
        "experts: [stage:kd, stage:dae]",
        "experts: [stage:kd, stage:dae, base], prompts: [general, shop]",
        "17: stages.double has 2 prompts for 3 experts; name one dataset per expert",
    ),
    "prompts of an unknown dataset": (
        "experts: [stage:kd, stage:dae]",
        "experts: [stage:kd, stage:dae], prompts: [general, shpo]",
        "17: stages.double.prompts names 'shpo', which is no dataset (did you mean 'shop'?); there is general, shop, "
        "notes",
    ),
    "noise below nothing": (
        "experts: [stage:kd, stage:dae]",
        "experts: [stage:kd, stage:dae], noise: -1",
        "17: stages.double.noise is -1; write a number of at least 0",
    ),
    "rows as an expert": (
        "experts: [stage:kd, stage:dae]",
        "experts: [stage:kd, stage:written]",
        "17: stages.double.experts.1 is 'stage:written', of kind generate, which gives rows; name a stage that gives a "
        "model",
    ),
    "a share of the second model out of range": (
        "alpha: 0.5",
        "alpha: 1.5",
        "18: stages.between.alpha is 1.5; write a number from 0 to 1",
    ),
    "no share of the second model": (
        ", alpha: 0.5",
        "",
        "18: stages.between.alpha is missing; add it",
    ),
    "three models between which there is nothing": (
        "models: [stage:kd, stage:dae], alpha",
        "models: [stage:kd, stage:dae, base], alpha",
        "18: stages.between.models is ['stage:kd', 'stage:dae', 'base']; write a list of 2 models",
    ),
    "another way to merge": (
        "alpha: 0.5",
        "alpha: 0.5, method: sphere",
        "18: stages.between.method is 'sphere'; write linear or slerp",
    ),
    # --- evaluate
    "a dataset without rows to score": (
        "on: [general, shop]",
        "on: [general, notes]",
        "24: stages.scores.on names 'notes', which keeps no rows to score; give that dataset a `holdout` or a `test` "
        "file",
    ),
    "an unknown dataset to score on": (
        "on: [general, shop]",
        "on: [general, shpo]",
        "24: stages.scores.on names 'shpo', which is no dataset (did you mean 'shop'?); there is general, shop, notes",
    ),
    "two models of one name": (
        "    models: [stage:kd, stage:dae]",
        "    models: [stage:kd, old/kd]",
        "19: stages.scores has two models called 'kd'; write models as a mapping from names of your choice",
    ),
    "a name that is a path": (
        "    models: [stage:kd, stage:dae]",
        "    models: {a/b: stage:kd}",
        "19: stages.scores has a model called 'a/b'; give it a name of letters, digits, '_', '-' and '.', not "
        "beginning with '.' or '-', at most 100 long, in a mapping",
    ),
    "an expert without a reference": (
        "    reference: stage:kd\n",
        "",
        "19: stages.scores has `expert` without `reference`, between which recovery is measured; add `reference`",
    ),
    "no model to score": (
        "    models: [stage:kd, stage:dae]",
        "    models: []",
        "21: stages.scores.models is []; write a list of models, or a mapping from names to models",
    ),
    "scores of scores": (
        "    models: [stage:kd, stage:dae]",
        "    models: [stage:kd, stage:early]",
        "21: stages.scores.models.1 is 'stage:early', of kind evaluate, which gives scores; name a stage that gives a "
        "model",
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, so that anything written is seen."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_recipe_that_the_cases_break_is_right(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(GOOD)
    recipe = preceptor.load_recipe(folder / "recipe.yaml")
    assert recipe.stage_reads("dae") == ["kd", "expert"]


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_exit_code_2_and_nothing_written(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refusal(GOOD, CASES[case], folder, capsys)


def test_what_a_column_decides_is_not_known_ahead(folder: Path) -> None:
    """Routes of a dataset with a `route` column are only in its rows."""
    for new in ("{routes: {tea: stage:kd}}", "{routes: {tea: stage:kd}, default: stage:kd}"):
        text = GOOD.replace("{routes: {shop: stage:expert, general: stage:kd}}", new)
        (folder / "recipe.yaml").write_text(text.replace("role: domain", "route: topic"))
        preceptor.load_recipe(folder / "recipe.yaml")


# --- what only the rows, or the models, tell --------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose run has a base, an expert and an adapter."""
    folder = tmp_path_factory.mktemp("made")
    for stage in ("start", "kd", "expert", "adapter"):
        preceptor.run(routed_recipes.recipe(folder), only=stage, log=lambda line: None)
    return folder


def refusal(folder: Path, rows: list[dict[str, Any]] | None = None, **dae: Any) -> str:
    """Why the last stage does not run; nothing of it may be left."""
    document = routed_recipes.document(folder, **dae)
    if rows is not None:
        (folder / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        document["data"]["some"] = {"path": str(folder / "some.jsonl"), "route": "topic"}
    with pytest.raises(InputError) as caught:
        preceptor.run(parse_recipe(document, folder=folder), only="dae", log=lambda line: None)
    assert not (folder / "runs/r/dae").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def routed_rows(*topics: Any) -> list[dict[str, Any]]:
    rows = [{**routed_recipes.row(f"salt or rice {i}", "rice"), "topic": topic} for i, topic in enumerate(topics)]
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


TEACHER = {"routes": {"shop": "stage:expert", "general": "stage:kd"}}


def test_a_row_without_its_route(made: Path) -> None:
    file = made / "some.jsonl"
    said = refusal(made, routed_rows("shop", None, "general"), data="some", teacher=TEACHER)
    assert said == (
        f"{file}:2: the column 'topic', which gives a row of some its route, is None; write the name of a route there, "
        "or change `route` (columns of this row: none)"
    )
    said = refusal(made, routed_rows("shop", 7, "general"), data="some", teacher=TEACHER)
    assert said == (
        f"{file}:2: the column 'topic', which gives a row of some its route, is 7; write the name of a route there, "
        "or change `route` (columns of this row: topic)"
    )


def test_routes_of_rows_and_of_teachers_that_differ(made: Path) -> None:
    rows = routed_rows("shop", "general", "general")
    assert refusal(made, rows, data="some", teacher={"routes": {"shpo": "stage:expert"}, "default": "stage:kd"}) == (
        "teacher: the route 'shpo' has no rows (did you mean 'shop'?); rows' routes are general, shop"
    )
    assert refusal(made, rows, data="some", teacher={"routes": {"shop": "stage:expert"}}) == (
        "teacher: route 'general' has no teacher, and a term follows one there; add a teacher for it or a default, or "
        "name other `routes` in the terms (there are teachers for shop)"
    )
    assert refusal(made, rows, data="some", teacher={**TEACHER, "default": "stage:kd"}) == (
        "teacher: the default is used by no route; remove it"
    )
    assert refusal(made, rows, data="some", teacher=TEACHER, objective=[{"kind": "logits", "routes": ["general"]}]) == (
        "teacher: no term follows the teacher of route 'shop'; remove it, or name the route in a term's `routes`"
    )


def test_a_route_whose_teacher_has_another_tokenizer_is_named(made: Path) -> None:
    other = made / "other"
    if not other.exists():
        import shutil

        shutil.copytree(made / "runs/r/expert/model", other)
        tokenizer = json.loads((other / "tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        letters = sorted((token for token in vocabulary if len(token) == 1), key=vocabulary.get)
        vocabulary[letters[0]], vocabulary[letters[1]] = vocabulary[letters[1]], vocabulary[letters[0]]
        (other / "tokenizer.json").write_text(json.dumps(tokenizer))
        Tokenizer.from_file(str(other / "tokenizer.json"))
    for teacher, where in (
        ({"routes": {"shop": str(other), "general": "stage:kd"}}, "teacher.routes.shop"),
        ({"routes": {"shop": "stage:expert"}, "default": str(other)}, "teacher.default"),
    ):
        said = refusal(made, teacher=teacher)
        assert said.startswith(
            f"recipe: stages.dae.{where}: the student's tokenizer (29 tokens) is not the teacher's (29 tokens): token "
        )
        recipe = routed_recipes.recipe(made, teacher=teacher)
        with pytest.raises(InputError, match=where):
            check_ahead(recipe, ["dae"])


# --- in Python --------------------------------------------------------------------------------------------------


def teacher(name: str = "teacher", **changes: Any) -> ModelTeacher:
    return ModelTeacher(toys.llama(1, **changes), name=name)


PYTHON: dict[str, tuple[Any, str]] = {
    "an unknown route": (
        lambda: RoutedTeacher({"shpo": teacher()}, route_names=("general", "shop")),
        "teacher: the route 'shpo' has no rows (did you mean 'shop'?); rows' routes are general, shop",
    ),
    "weights": (
        lambda: RoutedTeacher({"shop": [(teacher(), 0.5), (teacher(), 0.4)]}, route_names=("shop",)),
        "teacher: the weights of route 'shop' are [0.5, 0.4]; give weights above 0 that sum to 1",
    ),
    "a weight below 0": (
        lambda: RoutedTeacher({"shop": [(teacher(), 1.5), (teacher(), -0.5)]}, route_names=("shop",)),
        "teacher: the weights of route 'shop' are [1.5, -0.5]; give weights above 0 that sum to 1",
    ),
    "no teachers of a route": (
        lambda: RoutedTeacher({"shop": []}, route_names=("shop",)),
        "teacher: the weights of route 'shop' are []; give weights above 0 that sum to 1",
    ),
    "no teacher at all": (
        lambda: RoutedTeacher({}, route_names=("shop",)),
        "teacher: no route has a teacher; give at least one, or a default",
    ),
    "other names than the objective's": (
        lambda: Objective([Logits()], route_names=("a", "b")).prepare(
            toys.llama(0), RoutedTeacher({}, route_names=("b", "a"), default=teacher())
        ),
        "teacher: its routes are b, a and the objective's a, b; give both the same names in the same order",
    ),
    "a term on an unknown route": (
        lambda: Objective([NextToken(routes=("shop",))], route_names=("a", "b")),
        "objective: next_token names the route 'shop'; the stage's datasets are a, b",
    ),
    "a teacher of one route without attention maps": (
        lambda: Objective([Attention()], route_names=("a", "b")).prepare(
            toys.llama(0),
            RoutedTeacher(
                {"a": teacher("teacher A"), "b": teacher("teacher B", num_attention_heads=6, hidden_size=36)},
                route_names=("a", "b"),
            ),
            [toys.batch([[row] for row in toys.rows(1, [5, 6], [2, 2])], routes=[0, 0])],
        ),
        "attention: head or layer maps are chosen on calibration rows, and none with a target was given for "
        "'teacher B'; pass calibration rows, or set heads and layers to a policy that needs none",
    ),
}


@pytest.mark.parametrize("case", PYTHON)
def test_what_is_refused_in_python(case: str) -> None:
    make, sentence = PYTHON[case]
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == sentence


def test_a_teacher_without_weights_is_named() -> None:
    model = toys.llama(1)
    model.lm_head.to("meta")
    with pytest.raises(InputError) as caught:
        ModelTeacher(model, name="teacher stage:expert")
    assert str(caught.value) == (
        "teacher stage:expert: some of its weights are on no device, and nothing fetches them; load it with a "
        "`device_map` (`cpu` and `disk` are devices there), quantise it, or use a smaller teacher"
    )
    assert torch.device("meta") == model.lm_head.weight.device
