"""Runs the stages of a recipe, keeps what is done, and goes on where it was stopped.

    runs_dir/NAME/recipe.yaml         the recipe as last run, overrides applied
    runs_dir/NAME/STAGE/started.json  what the stage was started with
    runs_dir/NAME/STAGE/stage.json    written last, by rename: the only sign that the stage is complete

(The module is `runs` because `preceptor.run` is the public function, and importing a submodule of that name
would replace it.)
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from preceptor import __version__, distributed
from preceptor.errors import InputError, RunFailed
from preceptor.recipe import Recipe
from preceptor.running.exhausted import explained
from preceptor.running.failures import ERROR_FILE, between_stages, stage_failed
from preceptor.running.identity import stage_identities
from preceptor.running.lock import RunLock
from preceptor.running.network import only_what_is_named
from preceptor.running.refusals import refuse_alone, refuse_changed, refuse_damaged, refuse_in_the_way, selected_stages
from preceptor.running.stage_state import HASHES_FILE, LEFTOVERS, STAGE_FILE, STARTED_FILE, stage_state, work
from preceptor.stages import TOGETHER, executor_of
from preceptor.stages.ahead import check_ahead, check_together
from preceptor.stages.context import StageContext, run_directory
from preceptor.system.files import json_text, move_aside, remove_interrupted, sync_folder, write_atomic
from preceptor.system.hashes import Hashes
from preceptor.system.interrupts import Interrupted, listening
from preceptor.system.links import refuse_links

Log = Callable[[str], None]


def run(
    recipe: Recipe,
    *,
    only: str | None = None,
    redo: str | Sequence[str] | None = None,
    log: Log = print,
) -> dict[str, Any]:
    """Runs what is not yet done, in the recipe's order.

    `only` names the one stage to run (those it reads must be done); `redo` names stages to run again
    although they are done, whose old directories are moved aside to `STAGE.1`, `STAGE.2`, ….

    Returns `{"name", "directory", "stages": {name: {"status": "done" | "kept", "seconds", **results}}}`.

    Raises InputError, before anything is written, for names and paths that do not exist, a run directory
    that is in use or cannot be written, and finished or begun stages whose recipe, data or models have
    changed since; and RunFailed, with what to do next, when a stage fails.

    Ctrl-C and SIGTERM raise `interrupts.Interrupted`, a KeyboardInterrupt that says how to go on. A stage that
    trains first finishes its step and writes a checkpoint; a second signal stops it at once. In another thread than
    the main one, signals are left alone.

    In several processes (torchrun, accelerate launch) the first one does all this; the others train along,
    return the same, and raise `distributed.LeaderEnded` where the first one raises.
    """
    again = [redo] if isinstance(redo, str) else list(redo or ())
    distributed.read_models_whole()
    distributed.end_with_launcher()
    if not distributed.is_main():
        with listening(lambda line: None), only_what_is_named(recipe):
            return _follow(recipe)
    try:
        with listening(log), only_what_is_named(recipe):
            distributed.meet()
            with distributed.leading():
                result = _run(recipe, only, again, log)
                distributed.tell({"result": result})
    except Interrupted as stop:
        said = str(stop) or f"interrupted; what is finished is kept, and `{recipe.command}` goes on from there"
        raise Interrupted(stop.number, said) from None
    return result


def _run(recipe: Recipe, only: str | None, again: Sequence[str], log: Log) -> dict[str, Any]:
    selected = selected_stages(recipe, only, again)
    directory = run_directory(recipe)
    refuse_links(directory, recipe.stages)
    hashes = Hashes(directory / HASHES_FILE)
    documents = stage_identities(recipe, selected, hashes)
    with RunLock(directory, log), between_stages(directory, recipe.command):
        states = {name: stage_state(directory / name, documents[name]) for name in documents}
        refuse_in_the_way(recipe, directory, states, selected, again)
        todo = [name for name in selected if states[name].result is None or name in again]
        refuse_damaged(recipe, directory, todo, hashes)
        distributed.tell({"check": todo})
        check_ahead(recipe, todo)
        if distributed.world_size() == 1:
            refuse_alone(recipe, todo)
        for folder in (directory, directory / "report", directory / "report" / "figures"):
            remove_interrupted(folder)
        hashes.save()
        _write_recipe(recipe, directory)
        results: dict[str, Any] = {}
        for name in selected:
            kept = states[name].result
            if kept is not None and name not in again:
                log(f"{name}: done before ({kept['finished']}), kept")
                results[name] = {**kept["results"], "status": "kept", "seconds": kept["seconds"]}
                continue
            refuse_changed(recipe, name, hashes)
            old = move_aside(directory / name) if name in again and (directory / name).exists() else None
            if old is not None:
                log(f"{name}: the old result is now in {old}")
            try:
                done = _execute(recipe, name, directory, documents[name], log)
            except InputError:
                if old is not None and not (directory / name).exists():  # refused before it began
                    log(f"{name}: the old result is back in {old.rename(directory / name)}")
                raise
            results[name] = {**done["results"], "status": "done", "seconds": done["seconds"]}
    return {"name": recipe.name, "directory": str(directory), "stages": results}


def _follow(recipe: Recipe) -> dict[str, Any]:
    """What the other processes do: each time the first one says so, their part."""
    found: dict[str, Any] = {}

    def take_part(word: dict[str, Any]) -> None:
        if "check" in word:
            check_together(recipe, word["check"])
        elif "stage" in word:
            name = word["stage"]
            spec = recipe.stages[name]
            context = StageContext(recipe, name, run_directory(recipe) / name, recipe.seed, log=lambda line: None)
            try:
                executor_of(spec.kind)(spec, context)
            except (InputError, distributed.LeaderEnded):
                raise
            except Exception as error:
                cause = " ".join(f"{type(error).__name__}: {error}".split())
                raise RunFailed(
                    f"stage {name} failed in process {distributed.rank()}: {cause[:500]}; what is finished is kept, "
                    f"and once the cause is mended `{recipe.command}` goes on from there"
                ) from error
        elif "result" in word:
            found.update(word["result"])

    distributed.following(take_part)
    return found


def _write_recipe(recipe: Recipe, directory: Path) -> None:
    text = yaml.safe_dump(recipe.written, sort_keys=False, allow_unicode=True)
    note = (
        f"# From {recipe.source}, overrides applied; relative paths start in {recipe.folder}.\n"
        f"# Run it again with: {recipe.command}\n"
    )
    write_atomic(directory / "recipe.yaml", note + text)


def _execute(recipe: Recipe, name: str, directory: Path, document: dict[str, Any], log: Log) -> dict[str, Any]:
    """Runs one stage and writes its stage.json, whose content it returns."""
    target = directory / name
    target.mkdir(exist_ok=True)
    sync_folder(directory)
    for folder, _, _ in os.walk(target):
        remove_interrupted(Path(folder))
    resumed = bool(work(target))
    (target / ERROR_FILE).unlink(missing_ok=True)
    write_atomic(target / STARTED_FILE, json_text({"format": 1, "stage": name, **document}))
    spec = recipe.stages[name]
    log(f"{name}: {spec.kind}, {'going on' if resumed else 'started'} in {target}")
    context = StageContext(recipe=recipe, name=name, directory=target, seed=recipe.seed, log=log)
    started, clock = _now(), time.monotonic()
    if spec.kind in TOGETHER:
        distributed.tell({"stage": name})
    try:
        results = executor_of(spec.kind)(spec, context)
    except InputError:
        if all(file.name in LEFTOVERS for file in target.rglob("*") if not file.is_dir()):
            shutil.rmtree(target)  # wrong input leaves nothing behind, but what has been worked out stays
        raise
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
        kept = str(stop) if isinstance(stop, Interrupted) and str(stop) else "what is finished is kept"
        raise Interrupted(
            number, f"stage {name} was interrupted; {kept}, and `{recipe.command}` goes on from there"
        ) from None
    except Exception as error:
        raise stage_failed(explained(error, recipe, name), name, target, recipe.command) from error
    record = {
        "format": 1,
        "stage": name,
        "kind": spec.kind,
        "given": spec.model_dump(mode="json", by_alias=True),
        **document,
        "results": results,
        "started": started,
        "finished": _now(),
        "seconds": round(time.monotonic() - clock, 3),
        "versions": _versions(),
        "hardware": _hardware(),
    }
    text = json_text(record)
    write_atomic(target / STAGE_FILE, text)
    log(f"{name}: done in {record['seconds']:.1f} s")
    return dict(json.loads(text))


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version(), "preceptor": __version__}
    for package in ("torch", "transformers", "accelerate", "peft", "tokenizers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _hardware() -> dict[str, Any]:
    hardware: dict[str, Any] = {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "accelerators": [],
    }
    torch = sys.modules.get("torch")  # asked only where a stage has loaded it anyway
    if torch is not None and torch.cuda.is_available():
        count = torch.cuda.device_count()
        hardware["accelerators"] = [torch.cuda.get_device_name(index) for index in range(count)]
    return hardware
