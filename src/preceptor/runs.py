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
from preceptor.errors import InputError, InputErrors, RunFailed, did_you_mean
from preceptor.recipe import Recipe
from preceptor.recipe.sharding import needs_processes
from preceptor.running.exhausted import explained
from preceptor.running.failures import ERROR_FILE, between_stages, stage_failed
from preceptor.running.identity import differences, stage_identities
from preceptor.running.lock import RunLock
from preceptor.running.network import only_what_is_named
from preceptor.stages import TOGETHER, executor_of
from preceptor.stages.ahead import check_ahead, check_together
from preceptor.stages.context import StageContext, run_directory
from preceptor.system.files import (
    MANIFEST,
    interrupted_writes,
    json_text,
    move_aside,
    remove_interrupted,
    sync_folder,
    verify_directory,
    write_atomic,
)
from preceptor.system.hashes import Hashes
from preceptor.system.interrupts import Interrupted, listening
from preceptor.system.links import refuse_links

Log = Callable[[str], None]

STAGE_FILE = "stage.json"
STARTED_FILE = "started.json"
HASHES_FILE = ".hashes.json"
_LEFTOVERS = {STARTED_FILE, ERROR_FILE}  # files that a stage can have without having got anywhere


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
    selected = _selected(recipe, only, again)
    directory = run_directory(recipe)
    refuse_links(directory, recipe.stages)
    hashes = Hashes(directory / HASHES_FILE)
    documents = stage_identities(recipe, selected, hashes)
    with RunLock(directory, log), between_stages(directory, recipe.command):
        states = {name: stage_state(directory / name, documents[name]) for name in documents}
        _refuse(recipe, directory, states, selected, again)
        todo = [name for name in selected if states[name].result is None or name in again]
        _refuse_damaged(recipe, directory, todo)
        distributed.tell({"check": todo})
        check_ahead(recipe, todo)
        if distributed.world_size() == 1:
            _refuse_alone(recipe, todo)
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
            _refuse_changed(recipe, name, hashes)
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


class StageState:
    """What is found in a stage's directory."""

    def __init__(self, result: dict[str, Any] | None, changed: list[str], foreign: bool = False) -> None:
        self.result = result  # stage.json of a finished stage
        self.changed = changed  # what differs from the recipe, for a finished or begun stage
        self.foreign = foreign  # files of unknown origin


def stage_state(directory: Path, document: dict[str, Any]) -> StageState:
    """What a stage's directory holds, against the identity document the stage has now. Raises InputError."""
    if not directory.exists():
        return StageState(None, [])
    if (directory / STAGE_FILE).exists():
        result = _read(directory / STAGE_FILE)
        return StageState(result, _changes(result, document))
    if not _work(directory):
        return StageState(None, [])
    if not (directory / STARTED_FILE).exists():
        return StageState(None, [], foreign=True)
    return StageState(None, _changes(_read(directory / STARTED_FILE), document))


def _work(directory: Path) -> list[Path]:
    """The files and folders in a stage's directory that are of use, if it has got anywhere."""
    spare = set(interrupted_writes(directory))
    return [each for each in directory.iterdir() if each.name not in _LEFTOVERS and each not in spare]


def _changes(old: dict[str, Any], document: dict[str, Any]) -> list[str]:
    if old["identity"] == document["identity"]:
        return []
    return differences(old, document) or ["its identity differs"]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if {"identity", "spec", "seed", "inputs"} <= value.keys():
            return dict(value)
    except (OSError, ValueError, AttributeError):
        pass
    raise InputError(f"{path}: is not a readable record of a stage; move the folder {path.parent} away and run again")


def _selected(recipe: Recipe, only: str | None, again: Sequence[str]) -> list[str]:
    errors = [
        f"--{option} {name}: {recipe.source} has no stage of that name{did_you_mean(name, recipe.stages)}; "
        f"it has {', '.join(recipe.stages)}"
        for option, names in (("only", [only] if only is not None else []), ("redo", again))
        for name in names
        if name not in recipe.stages
    ]
    if not errors and only is not None:
        errors = [
            f"--redo {name}: is not run with --only {only}; leave one of them out" for name in again if name != only
        ]
    if errors:
        raise InputErrors(errors)
    return list(recipe.stages) if only is None else [only]


def _refuse(
    recipe: Recipe, directory: Path, states: dict[str, StageState], selected: Sequence[str], again: Sequence[str]
) -> None:
    """Raises InputErrors for stages that are in the way, or that others need and that are not there."""
    errors = []
    changed = [name for name, state in states.items() if (state.changed or state.foreign) and name not in again]
    redo = " ".join(f"--redo {name}" for name in [*again, *changed])
    for name in changed:
        if states[name].foreign:
            what = f"holds files but no {STARTED_FILE}, so they are of no run"
        else:
            how = "finished" if states[name].result else "begun"
            more = states[name].changed
            listed = "; ".join(more[:5]) + (f"; and {len(more) - 5} more" if len(more) > 5 else "")
            what = f"was {how} with another recipe or other data ({listed})"
        errors.append(
            f"{directory / name}: {what}; undo the change, or run again with {redo}, which moves the old result aside"
        )
    for name in selected:
        for source in recipe.stage_reads(name):
            if source not in selected and states[source].result is None:
                errors.append(f"--only {name}: reads stage {source}, which is not done; run --only {source} first")
    if errors:
        raise InputErrors(errors)


def _refuse_damaged(recipe: Recipe, directory: Path, todo: Sequence[str]) -> None:
    """Raises InputErrors for finished models that are to be read and are no longer what was written."""
    errors = []
    for source in {name for stage in todo for name in recipe.stage_reads(stage)}.difference(todo):
        for folder in (directory / source / "model", directory / source / "adapter"):
            if (folder / MANIFEST).is_file():
                try:
                    verify_directory(folder)
                except InputError as error:
                    cause = str(error).rpartition("; ")[0]
                    errors.append(f"{cause}; copy the folder again, or make it anew with --redo {source}")
    if errors:
        raise InputErrors(sorted(errors))


def _refuse_changed(recipe: Recipe, name: str, hashes: Hashes) -> None:
    """Raises RunFailed where a stage would read other files than its record says: earlier stages may take days."""
    if changed := hashes.changes(name):
        raise RunFailed(
            f"stage {name} was not begun: {'; '.join(changed[:3])}{'; and more' * (len(changed) > 3)} since this run "
            f"began; undo that, or take it as it is: what is finished is kept, and `{recipe.command}` goes on"
        )


def _refuse_alone(recipe: Recipe, todo: Sequence[str]) -> None:
    """Raises InputErrors for stages that one process cannot run."""
    errors = [
        f"{recipe.source}: stages.{name}.{problem}" for name in todo for problem in needs_processes(recipe.stages[name])
    ]
    if errors:
        raise InputErrors(errors)


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
    resumed = bool(_work(target))
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
        if all(file.name in _LEFTOVERS for file in target.rglob("*") if not file.is_dir()):
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
