"""`preceptor evaluate`: scores models without a recipe."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from preceptor.cli.command import Command
from preceptor.cli.output import print_run, progress
from preceptor.cli.parser import OneOf, Parser, new_parser, wrapped
from preceptor.errors import InputError
from preceptor.system import live

_MORE = """\
It is a recipe of one stage, DIR/recipe.yaml afterwards; key=value changes any leaf of it. The same command goes on
where a stopped one was, and answers and judgments that are there are not paid for again."""


def _parser() -> Parser:
    parser = new_parser(
        "evaluate",
        "[NAME=]MODEL …",
        "Score models by rows with answers, MT-Bench, AlpacaEval and tasks of lm-evaluation-harness.",
        [
            "preceptor evaluate base=./base tuned=runs/shop/dae/model --reference base --general general.jsonl "
            "--domain shop.jsonl",
            "preceptor evaluate ./tuned --mt-bench llm_judge/data/mt_bench --judge https://api.openai.com/v1#gpt-4 "
            "--judge-key-env OPENAI_API_KEY",
            "preceptor evaluate ./tuned http://127.0.0.1:8000/v1#served --alpaca-eval "
            "text_davinci_003/model_outputs.json",
            "preceptor evaluate ./tuned --tasks arc_easy,hellaswag stages.scores.tasks.limit=100",
        ],
        wrapped(_MORE),
    )
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `preceptor.recipe.from_options.evaluation` reads."""
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        metavar="[NAME=]MODEL",
        help="a folder or Hub id, or URL#MODEL of an OpenAI-compatible endpoint; also key=value of the recipe it makes",
    )
    add("--reference", metavar="NAME", help="the model whose general ability is to be kept")
    add("--expert", metavar="NAME", help="the model whose domain ability is to be gained")
    rows = parser.add_argument_group("rows (data files with `messages`, and `metric`, `choices`, `task`)")
    rows.add_argument(
        "--general", metavar="FILE", action="append", default=[], help="rows of general ability (repeatable)"
    )
    rows.add_argument("--domain", metavar="FILE", action="append", default=[], help="rows of the domain (repeatable)")
    suites = parser.add_argument_group("suites")
    suites.add_argument(
        "--mt-bench",
        metavar="FOLDER",
        help="the official data: question.jsonl, reference_answer/gpt-4.jsonl, and judge_prompts.jsonl there or above",
    )
    suites.add_argument("--alpaca-eval", metavar="FILE", help="model_outputs.json of the baseline")
    suites.add_argument("--annotator-prompt", metavar="FILE", help="AlpacaEval's prompt template")
    suites.add_argument("--tasks", metavar="A,B", help="tasks of lm-evaluation-harness")
    suites.add_argument(
        "--include", metavar="FOLDER", action="append", default=[], help="folder of further task files (repeatable)"
    )
    judge = parser.add_argument_group("judge")
    judge.add_argument("--judge", metavar="URL#MODEL", help="an OpenAI-compatible endpoint that judges the answers")
    judge.add_argument("--judge-key-env", metavar="VARIABLE", help="environment variable that holds its key")
    add("--out", metavar="DIR", default="scores", help="where to write (default: scores)")
    add("--redo", metavar="scores", type=OneOf("scores"), help="score again, moving the old result aside")


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    if not (options.models or options.mt_bench or options.alpaca_eval):
        raise InputError(
            "preceptor evaluate: no model is given; write for example preceptor evaluate ./student --general "
            "general.jsonl"
        )

    from preceptor.recipe import parse_recipe
    from preceptor.recipe.from_options import SOURCE, check_folder, evaluation

    raw, overrides = evaluation(options)
    check_folder(Path(options.out))
    again = shlex.join(["preceptor", "evaluate", *arguments])
    recipe = parse_recipe(raw, name=SOURCE, overrides=overrides, again=again)

    from preceptor.runs import run

    with live.display():
        result = run(recipe, redo=options.redo, log=progress)
    print_run(result, options.json)
    return 0


COMMAND = Command(
    "evaluate",
    "score models: rows, MT-Bench, AlpacaEval, tasks of lm-eval",
    _parser,
    _run,
)
