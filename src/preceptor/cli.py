"""The command line. Heavy modules are imported inside commands, so that it starts at once.

Results go to standard output (one JSON object with `--json`), progress to standard error.
Exit codes: 0 done; 2 the input is wrong, nothing was written; 1 it failed while running; 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from preceptor import __version__, live
from preceptor.distributed import LeaderEnded, is_main, launch, launch_arguments, leave, processes_to_start
from preceptor.errors import InputError, InputErrors, RunFailed, accepted, did_you_mean
from preceptor.files import json_text

_DESCRIPTION = """\
preceptor distils a large instruct model into a small one, then teaches it a domain
without losing what it knew.

commands:
  demo                      see it work at pocket size, on a CPU, in minutes, with figures
  run RECIPE [key=value …]  run what a recipe describes and is not yet done
  plan RECIPE [key=value …] show what would run: stages, data, a sample with its targets, sizes
  store info|verify DIR     what a stored teacher holds, and whether it is whole
  evaluate [NAME=]MODEL …   score models: rows, MT-Bench, AlpacaEval, tasks of lm-evaluation-harness
  report RUN …              one page of what was learned, gained and forgotten
"""
_EPILOG = """\
examples:
  preceptor demo --out demo
  preceptor plan recipe.yaml
  preceptor run recipe.yaml
  preceptor run recipe.yaml stages.kd.training.learning_rate=1e-5 --redo kd
  preceptor run recipe.yaml --only kd --json > result.json
  preceptor evaluate base=./base tuned=runs/shop/dae/model --general general.jsonl --reference base
  preceptor report runs/shop

`preceptor COMMAND --help` tells more. Exit codes: 0 done, 2 wrong input (nothing written),
1 failed while running (the message says how to go on), 130 interrupted.
"""
_OVERRIDES = """\
key=value changes any leaf of the recipe; values are YAML and list items count from 0:
  seed=44   stages.kd.rows_per_step=64   stages.kd.objective.1.weight=0.5
  'stages.kd.data={shop: 0.1, general: 0.9}'
"""
PAGE = "report.html"


class _Parser(argparse.ArgumentParser):
    """A parser that reports wrong usage like any other wrong input."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    # Imported along with PEFT, it recommends a kernel from the Hub to whoever runs anything on certain CPUs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        return _dispatch(arguments)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except InputErrors as error:
        return _fail(2, error.errors, as_json)
    except InputError as error:
        return _fail(2, [str(error)], as_json)
    except RunFailed as error:
        return _fail(1, [str(error)], as_json)
    except LeaderEnded as end:
        return end.code
    except BrokenPipeError:  # `preceptor plan … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as stop:
        return _fail(130, [str(stop) or "interrupted"] if is_main() else [], as_json)


def _dispatch(arguments: list[str]) -> int:
    top = _Parser(
        prog="preceptor",
        usage="preceptor COMMAND …",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"preceptor {__version__}")
    if not arguments:
        top.print_help()
        return 0
    name = arguments[0]
    if name.startswith("-"):
        top.parse_args(arguments)
        raise InputError(f"preceptor: give a command first: {accepted(_COMMANDS)}; see preceptor --help")
    if name not in _COMMANDS:
        raise InputError(
            f"preceptor: {name!r} is no command{did_you_mean(name, _COMMANDS)}; "
            f"write {accepted(_COMMANDS)}, and see preceptor --help"
        )
    return _COMMANDS[name](arguments[1:])


def _run(arguments: list[str]) -> int:
    parser = _recipe_parser(
        "run",
        "Run the stages of a recipe that are not yet done. A run that was stopped goes on where it was.",
        "preceptor run recipe.yaml\n  preceptor run recipe.yaml seed=44 name=shop-44 --out /data/runs\n"
        "  preceptor run recipe.yaml --only kd --redo kd",
    )
    parser.add_argument("--only", metavar="STAGE", help="run this stage only; those it reads must be done")
    parser.add_argument(
        "--redo",
        metavar="STAGE",
        action="append",
        help="run this stage again, moving its old result aside (repeatable)",
    )
    parser.add_argument("--out", metavar="DIR", help="write to DIR/NAME instead of runs_dir/NAME")
    options = _parse(parser, arguments)
    overrides = list(options.overrides)
    if options.out is not None:
        overrides.append("runs_dir=" + json_text(options.out))

    from preceptor.recipe import StoreStage, TrainingStage, load_recipe, models_of
    from preceptor.runs import run

    recipe = load_recipe(options.recipe, overrides)
    visible = processes_to_start()
    if visible > 1 and any(isinstance(stage, TrainingStage | StoreStage) for stage in recipe.stages.values()):
        # A model spread over GPUs leaves none to other processes; torchrun also tells Trainer not to use DataParallel.
        spread = any(model.device_map for stage in recipe.stages.values() for model in models_of(stage).values())
        number = "1 process starts (a device_map uses them all)" if spread else f"{visible} processes start"
        _progress(f"{visible} GPUs are visible: {number}; CUDA_VISIBLE_DEVICES chooses fewer")
        return launch(launch_arguments(["run", *arguments], 1 if spread else visible))
    with live.display():
        result = run(recipe, only=options.only, redo=options.redo, log=_progress)
    leave()
    _print_run(result, options.json)
    return 0


def _print_run(result: dict[str, Any], as_json: bool) -> None:
    """What each stage came to; and the page of the run, without which the run is no less done."""
    if not is_main():
        return
    folder = Path(result["directory"])
    page = folder / "report" / PAGE
    if not page.exists() or any(stage["status"] == "done" for stage in result["stages"].values()):
        from preceptor.report import write_report

        try:
            write_report([folder], page.parent, log=_progress)
        except Exception as error:  # whatever a damaged file does to the report, the run is done
            _progress(f"no report was written ({error}); preceptor report {folder} tries again")
    lines = [f"{name}  {stage['status']}  {stage['seconds']:.1f} s" for name, stage in result["stages"].items()]
    if page.exists():
        result["report"] = str(page)
        lines.append(f"report: {page}")
    _print(result, "\n".join([*lines, result["directory"]]), as_json)


def _plan(arguments: list[str]) -> int:
    parser = _recipe_parser(
        "plan",
        "Show what a recipe would run, without training and without writing anything.",
        "preceptor plan recipe.yaml\n  preceptor plan recipe.yaml stages.kd.packing=true --json",
    )
    parser.add_argument(
        "--device-memory", metavar="SIZE", help="plan for GPUs of so much memory, such as 80GB (default: what is here)"
    )
    parser.add_argument("--devices", metavar="N", help="for so many devices (default: 1)")
    parser.add_argument(
        "--rate", metavar="TFLOPS", help="what a device does in a second, in 10^12 FLOP (default: measured here)"
    )
    parser.add_argument("--quick", action="store_true", help="leave out what stages need of memory, time and disk")
    options = _parse(parser, arguments)

    from preceptor.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)

    from preceptor.plan import plan, render  # after it: torch takes seconds, and a wrong key is said at once
    from preceptor.plan.options import device_of

    result = plan(recipe, log=_progress, device=device_of(options))
    _print(result, render(result), options.json)
    return 0


def _demo(arguments: list[str]) -> int:
    parser = _parser(
        "demo",
        "The study at pocket size: a small model learns from a big one, then a domain, on a CPU, in minutes.",
        "",
    )
    parser.epilog = "examples:\n  preceptor demo\n  preceptor demo --full --seeds 5 --out study"
    parser.add_argument("--full", action="store_true", help="five seeds, with the controls and sweeps (hours)")
    parser.add_argument("--seeds", metavar="N", type=int, help="how many seeds (default: 1, or 5 with --full)")
    parser.add_argument("--out", metavar="DIR", default="demo", help="where to write (default: demo)")
    options = parser.parse_args(arguments)
    if options.seeds is not None and options.seeds < 1:
        raise InputError(f"preceptor demo: --seeds is {options.seeds}; write a whole number of at least 1")

    from preceptor.pocket.demo import main as demo

    with live.display():
        result = demo(out=Path(options.out), full=options.full, seeds=options.seeds, log=_progress)
    _print(result, f"results: {options.out}", options.json)
    return 0


def _store(arguments: list[str]) -> int:
    parser = _parser(
        "store",
        "Look at the predictions that a `store` stage wrote: `info` reads the manifest, `verify` every byte.",
        "examples:\n  preceptor store info runs/shop/said/store\n  preceptor store verify runs/shop/said/store --json",
    )
    parser.add_argument("what", metavar="info|verify", choices=("info", "verify"), help="what to do")
    parser.add_argument("folder", metavar="DIR", help="the folder of a store")
    options = parser.parse_intermixed_args(arguments)

    from preceptor.teachers.store_report import info, render_info, render_verify, verify

    read, render = (info, render_info) if options.what == "info" else (verify, render_verify)
    result = read(Path(options.folder))
    _print(result, render(result), options.json)
    return 0


def _evaluate(arguments: list[str]) -> int:
    parser = _parser(
        "evaluate",
        "Score models by rows with answers, MT-Bench, AlpacaEval and tasks of lm-evaluation-harness.",
        """\
examples:
  preceptor evaluate base=./base tuned=runs/shop/dae/model --reference base --general general.jsonl --domain shop.jsonl
  preceptor evaluate ./tuned --mt-bench llm_judge/data/mt_bench --judge https://api.openai.com/v1#gpt-4 \\
      --judge-key-env OPENAI_API_KEY
  preceptor evaluate ./tuned http://127.0.0.1:8000/v1#served --alpaca-eval text_davinci_003/model_outputs.json
  preceptor evaluate ./tuned --tasks arc_easy,hellaswag stages.scores.tasks.limit=100

It is a recipe of one stage, DIR/recipe.yaml afterwards; key=value changes any leaf of it. The same command goes on
where a stopped one was, and answers and judgments that are there are not paid for again.""",
    )
    from preceptor.recipe.from_options import SOURCE, STAGE, add_options, check_folder, evaluation

    add_options(parser)
    parser.add_argument("--redo", choices=[STAGE], help="score again, moving the old result aside")
    options = parser.parse_intermixed_args(arguments)

    from preceptor.recipe import parse_recipe
    from preceptor.runs import run

    raw, overrides = evaluation(options)
    check_folder(Path(options.out))
    again = shlex.join(["preceptor", "evaluate", *arguments])
    recipe = parse_recipe(raw, name=SOURCE, overrides=overrides, again=again)
    with live.display():
        result = run(recipe, redo=options.redo, log=_progress)
    _print_run(result, options.json)
    return 0


def _report(arguments: list[str]) -> int:
    parser = _parser(
        "report",
        "One page from run directories, finished or not: report.html (needs no network), report.json and figures/.",
        "examples:\n  preceptor report runs/shop\n  preceptor report runs/shop-43 runs/shop-44 --out compared\n"
        '  preceptor report runs --published --title "All trials"',
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run directory, one stage of it, or a folder of runs")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: RUN/report, or report for several runs)")
    parser.add_argument("--title", help="title of the page (default: the names of the runs)")
    parser.add_argument(
        "--published",
        action="store_true",
        help="add figures that others have published, as rows that name their source",
    )
    options = parser.parse_intermixed_args(arguments)
    if not options.runs:
        raise InputError("preceptor report: no run is given; write preceptor report RUN with a run's directory")
    runs = [Path(run) for run in options.runs]
    out = Path(options.out) if options.out else runs[0] / "report" if len(runs) == 1 else Path("report")

    from preceptor.report import write_report
    from preceptor.report.table import table

    result = write_report(runs, out, title=options.title, published=options.published, log=_progress)
    _print(result, f"{table(result)}\n{out / PAGE}", options.json)
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": _demo,
    "run": _run,
    "plan": _plan,
    "evaluate": _evaluate,
    "report": _report,
    "store": _store,
}


def _recipe_parser(name: str, description: str, examples: str) -> _Parser:
    parser = _parser(name, description, f"{_OVERRIDES}\nexamples:\n  {examples}")
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="changes to the recipe, see below")
    return parser


def _parse(parser: _Parser, arguments: list[str]) -> argparse.Namespace:
    """Parses a command whose overrides may stand before, between and after options."""
    options = parser.parse_intermixed_args(arguments)
    if options.recipe is None:
        raise InputError(f"{parser.prog}: no recipe is given; write {parser.prog} RECIPE with the path of a YAML file")
    return options


def _parser(name: str, description: str, epilog: str) -> _Parser:
    parser = _Parser(
        prog=f"preceptor {name}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return parser


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(result: dict[str, Any], text: str, as_json: bool) -> None:
    if is_main():
        print(json_text(result) if as_json else text, flush=True)


def _fail(code: int, errors: Sequence[str], as_json: bool) -> int:
    for error in errors:
        print(error if code == 130 else f"error: {error}", file=sys.stderr)
    if as_json and is_main():
        print(json_text({"exit_code": code, "errors": list(errors)}))
    return code
