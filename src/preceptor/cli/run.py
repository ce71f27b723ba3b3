"""`preceptor run`: does what a recipe describes and is not yet done."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from preceptor.cli.command import Command
from preceptor.cli.output import print_run, progress
from preceptor.cli.parser import Parser, need_recipe, recipe_parser
from preceptor.distributed import leave
from preceptor.running.launching import launch, launch_arguments, processes_to_start
from preceptor.system import live
from preceptor.system.files import json_text


def _parser() -> Parser:
    parser = recipe_parser(
        "run",
        "Run the stages of a recipe that are not yet done. A run that was stopped goes on where it was.",
        [
            "preceptor run recipe.yaml",
            "preceptor run recipe.yaml seed=44 name=shop-44 --out /data/runs",
            "preceptor run recipe.yaml --only kd --redo kd",
            "preceptor run recipe.yaml --json > result.json",
        ],
    )
    parser.add_argument("--only", metavar="STAGE", help="run this stage only; those it reads must be done")
    parser.add_argument(
        "--redo",
        metavar="STAGE",
        action="append",
        help="run this stage again, moving its old result aside (repeatable)",
    )
    parser.add_argument("--out", metavar="DIR", help="write to DIR/NAME instead of runs_dir/NAME")
    return parser


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    need_recipe("run", options)
    overrides = list(options.overrides)
    if options.out is not None:
        overrides.append("runs_dir=" + json_text(options.out))

    from preceptor.recipe import StoreStage, TrainingStage, load_recipe, models_of

    recipe = load_recipe(options.recipe, overrides)

    from preceptor.runs import run  # after it: torch takes seconds, and a wrong key is said at once

    visible = processes_to_start()
    if visible > 1 and any(isinstance(stage, TrainingStage | StoreStage) for stage in recipe.stages.values()):
        # A model spread over GPUs leaves none to other processes; torchrun also tells Trainer not to use DataParallel.
        spread = any(model.device_map for stage in recipe.stages.values() for model in models_of(stage).values())
        number = "1 process starts (a device_map uses them all)" if spread else f"{visible} processes start"
        progress(f"{visible} GPUs are visible: {number}; CUDA_VISIBLE_DEVICES chooses fewer")
        return launch(launch_arguments(["run", *arguments], 1 if spread else visible))
    with live.display():
        result = run(recipe, only=options.only, redo=options.redo, log=progress)
    leave()
    print_run(result, options.json)
    return 0


COMMAND = Command("run", "run what a recipe describes and is not yet done", _parser, _run)
