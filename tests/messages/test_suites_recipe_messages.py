"""What is refused of suites and endpoints in an `evaluate` stage, and of the options of `preceptor evaluate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from preceptor.cli import main
from preceptor.cli.evaluate import add_options
from preceptor.errors import InputError, InputErrors
from preceptor.recipe import EvaluateStage, parse_recipe
from preceptor.recipe.from_options import evaluation

DATA = {"shop": {"path": "shop.jsonl", "holdout": 2}}
JUDGE = {"endpoint": "http://127.0.0.1:1/v1", "model": "j"}
SERVED = {"models": {"served": {"endpoint": "http://127.0.0.1:1/v1", "model": "m"}}}
BENCH = {"questions": "q.jsonl"}
KEYS = "endpoint, model, key_env, concurrency, timeout, retries, token_limit_field, omit or price"


def stage(**keys: Any) -> dict[str, Any]:
    return {"kind": "evaluate", "models": ["m"], **keys}


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to score on": (
        stage(),
        "recipe: stages.s has nothing to score models on; add `on: [DATASET]`, `mt_bench`, `alpaca_eval` or `tasks`",
    ),
    "no models": (
        {"kind": "evaluate", "mt_bench": BENCH},
        "recipe: stages.s has no `models`; write a list of models, or a mapping from names to models",
    ),
    "a judge without prompts": (
        stage(mt_bench={**BENCH, "judge": JUDGE}),
        "recipe: stages.s.mt_bench has a `judge` without `prompts`; give the path of the official judge_prompts.jsonl",
    ),
    "a judge without a template": (
        stage(alpaca_eval={"baseline": "b.json", "judge": JUDGE}),
        "recipe: stages.s.alpaca_eval has a `judge` without `prompt`; give the path of the annotator's prompt template",
    ),
    "likelihoods of an endpoint": (
        {"kind": "evaluate", **SERVED, "on": ["shop"]},
        "recipe: stages.s has the endpoint 'served' among models that `on` scores by their likelihoods, which an "
        "endpoint does not give; put it into an evaluate stage of its own, with mt_bench or alpaca_eval",
    ),
    "tasks of an endpoint": (
        {"kind": "evaluate", **SERVED, "tasks": {"names": ["arc_easy"]}},
        "recipe: stages.s has the endpoint 'served' among models that `tasks` scores by their likelihoods, which an "
        "endpoint does not give; put it into an evaluate stage of its own, with mt_bench or alpaca_eval",
    ),
    "a name twice": (
        stage(mt_bench={**BENCH, "answers": {"m": "a.jsonl"}}),
        "recipe: stages.s has a model called 'm' in mt_bench.answers and in `models`; call one of them otherwise",
    ),
    "a key of an endpoint": (
        stage(mt_bench={**BENCH, "prompts": "p", "judge": {**JUDGE, "colour": "red"}}),
        f"recipe: stages.s.mt_bench.judge.colour is not a key that exists here; accepted are {KEYS}",
    ),
    "an order": (
        stage(alpaca_eval={"baseline": "b.json", "order": "rndom"}),
        "recipe: stages.s.alpaca_eval.order is 'rndom'; write random or both (did you mean 'random'?)",
    ),
    "the name of a limit": (
        stage(mt_bench={**BENCH, "prompts": "p", "judge": {**JUDGE, "token_limit_field": "tokens"}}),
        "recipe: stages.s.mt_bench.judge.token_limit_field is 'tokens'; write max_tokens or max_completion_tokens (did "
        "you mean 'max_tokens'?)",
    ),
    "an endpoint without a model": (
        {"kind": "evaluate", "models": [{"endpoint": "http://127.0.0.1:1/v1"}], "mt_bench": BENCH},
        "recipe: stages.s.models.0.model is missing; add it",
    ),
    "a field to omit": (
        stage(mt_bench={**BENCH, "prompts": "p", "judge": {**JUDGE, "omit": ["temprature"]}}),
        "recipe: stages.s.mt_bench.judge.omit.0 is 'temprature'; write temperature or seed (did you mean "
        "'temperature'?)",
    ),
    "everything held out of training": (
        {"kind": "sft", "model": "m", "data": "kept"},
        "recipe: stages.s.data names 'kept', of which every row is held out; give it a number as `holdout`",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence(case: str) -> None:
    given, sentence = CASES[case]
    data = {**DATA, "kept": {"path": "kept.jsonl", "holdout": "all"}}
    with pytest.raises(InputErrors) as caught:
        parse_recipe({"name": "r", "data": data, "stages": {"s": given}})
    assert caught.value.errors == [sentence]


def test_the_files_of_suites_and_what_is_served() -> None:
    given = stage(
        models=["m", {"endpoint": "http://127.0.0.1:1/v1", "model": "org/served"}],
        mt_bench={"questions": "q", "answers": {"a": "x"}, "judgments": ["j"]},
        alpaca_eval={"baseline": "b"},
    )
    spec = parse_recipe({"name": "r", "stages": {"s": given}}).stages["s"]
    assert isinstance(spec, EvaluateStage)
    assert list(spec.named) == ["m"]
    assert list(spec.served) == ["served"]
    assert spec.files == {
        ("mt_bench", "questions"): "q",
        ("mt_bench", "answers", "a"): "x",
        ("mt_bench", "judgments", 0): "j",
        ("alpaca_eval", "baseline"): "b",
    }


# --- the options of `preceptor evaluate` --------------------------------------------------------------------------


def made(*arguments: str) -> tuple[dict[str, Any], list[str]]:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return evaluation(parser.parse_intermixed_args(arguments))


def test_options_make_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mt_bench" / "reference_answer").mkdir(parents=True)
    for name in ("mt_bench/question.jsonl", "mt_bench/reference_answer/gpt-4.jsonl", "judge_prompts.jsonl"):
        (tmp_path / name).touch()
    raw, overrides = made(
        "base=./base", "stages.scores.rows=5", "http://127.0.0.1:8000/v1#org/served", "--general", "g.jsonl",
        "--domain", "a.jsonl", "--domain", "b.jsonl", "--reference", "base", "--mt-bench", str(tmp_path / "mt_bench"),
        "--judge", "http://127.0.0.1:9/v1#j", "--judge-key-env", "KEY", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert overrides == ["stages.scores.rows=5"]
    assert raw == {
        "name": "out",
        "runs_dir": str(tmp_path),
        "data": {
            "general": {"path": "g.jsonl", "holdout": "all", "role": "general"},
            "domain-1": {"path": "a.jsonl", "holdout": "all", "role": "domain"},
            "domain-2": {"path": "b.jsonl", "holdout": "all", "role": "domain"},
        },
        "stages": {
            "scores": {
                "kind": "evaluate",
                "models": {
                    "base": {"path": "./base"},
                    "served": {"endpoint": "http://127.0.0.1:8000/v1", "model": "org/served"},
                },
                "reference": {"path": "./base"},
                "on": ["general", "domain-1", "domain-2"],
                "mt_bench": {
                    "questions": str(tmp_path / "mt_bench/question.jsonl"),
                    "prompts": str(tmp_path / "judge_prompts.jsonl"),
                    "references": str(tmp_path / "mt_bench/reference_answer/gpt-4.jsonl"),
                    "judge": {"endpoint": "http://127.0.0.1:9/v1", "model": "j", "key_env": "KEY"},
                },
            }
        },
    }


OPTIONS: dict[str, tuple[list[str], str]] = {
    "an unknown reference": (
        ["a=x", "--reference", "b"],
        "preceptor evaluate: --reference is 'b', and the models that are loaded here are a; name one of them",
    ),
    "a folder of tasks that are not asked": (
        ["a=x", "--include", "tasks"],
        "preceptor evaluate: --include is given without --tasks; add that, or leave it out",
    ),
    "two models of one name, which is a run's folder": (
        ["./model", "x/../model"],
        "preceptor evaluate: two models are called 'model'; give them names, as in first=x/../model other=…",
    ),
    "two stages of one name": (
        ["x/kd/model", "y/kd/model"],
        "preceptor evaluate: two models are called 'kd'; give them names, as in first=y/kd/model other=…",
    ),
    "an endpoint without a model": (
        ["http://127.0.0.1:8000/v1"],
        "preceptor evaluate: 'http://127.0.0.1:8000/v1' names no model of the endpoint; write "
        "http://127.0.0.1:8000/v1#MODEL",
    ),
    "nothing to judge": (
        ["a=x", "--judge", "http://127.0.0.1:1/v1#j"],
        "preceptor evaluate: --judge has nothing to judge; add --mt-bench or --alpaca-eval",
    ),
    "a key without a judge": (
        ["a=x", "--judge-key-env", "K"],
        "preceptor evaluate: --judge-key-env is given without --judge; add --judge URL#MODEL",
    ),
    "no questions": (
        ["a=x", "--mt-bench", "nowhere"],
        "preceptor evaluate: --mt-bench nowhere: there is no question.jsonl; give the folder of the official data "
        "(fastchat/llm_judge/data/mt_bench)",
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_in_one_sentence(case: str) -> None:
    given, sentence = OPTIONS[case]
    with pytest.raises(InputError) as caught:
        made(*given)
    assert str(caught.value) == sentence


def test_names_that_begin_like_keys_are_names() -> None:
    raw, overrides = made("seed43=a", "data1=b", "seed=7", "data.x.path=y")
    assert list(raw["stages"]["scores"]["models"]) == ["seed43", "data1"]
    assert overrides == ["seed=7", "data.x.path=y"]


def test_another_recipes_run_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/recipe.yaml").write_text("# From recipe.yaml, overrides applied; …\nname: runs\n")
    assert main(["evaluate", "a=x", "--tasks", "t", "--out", "runs"]) == 2
    assert capsys.readouterr().err == (
        "error: preceptor evaluate: runs holds the run of another recipe; give another folder with --out\n"
    )
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["recipe.yaml"]


def test_wrong_options_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "a=nowhere/model", "--general", "none.jsonl", "--json"]) == 2
    result = json.loads(capsys.readouterr().out)
    assert result["exit_code"] == 2
    assert any("'none.jsonl' does not exist" in error for error in result["errors"])
    assert list(tmp_path.iterdir()) == []
