"""Why a run is not begun, or does not go on to its next stage: one sentence for each thing that is in the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from preceptor.errors import InputError, InputErrors, RunFailed, did_you_mean
from preceptor.recipe import Recipe
from preceptor.recipe.sharding import needs_processes
from preceptor.running.stage_state import STARTED_FILE, StageState
from preceptor.system.files import MANIFEST, verify_directory
from preceptor.system.hashes import Hashes


def selected_stages(recipe: Recipe, only: str | None, again: Sequence[str]) -> list[str]:
    """The stages that a run is about, in the recipe's order. Raises InputErrors for names that are not there."""
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


def refuse_in_the_way(
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


def refuse_damaged(recipe: Recipe, directory: Path, todo: Sequence[str], hashes: Hashes) -> None:
    """Raises InputErrors for finished models that are to be read and are no longer what was written."""
    errors = []
    hashes.reader = ""  # of no stage: these are read because the run goes on
    for source in {name for stage in todo for name in recipe.stage_reads(stage)}.difference(todo):
        for folder in (directory / source / "model", directory / source / "adapter"):
            if (folder / MANIFEST).is_file():
                try:
                    verify_directory(folder, hashes.file)
                except InputError as error:
                    cause = str(error).rpartition("; ")[0]
                    errors.append(f"{cause}; copy the folder again, or make it anew with --redo {source}")
    if errors:
        raise InputErrors(sorted(errors))


def refuse_changed(recipe: Recipe, name: str, hashes: Hashes) -> None:
    """Raises RunFailed where a stage would read other files than its record says: earlier stages may take days."""
    if changed := hashes.changes(name):
        raise RunFailed(
            f"stage {name} was not begun: {'; '.join(changed[:3])}{'; and more' * (len(changed) > 3)} since this run "
            f"began; undo that, or take it as it is: what is finished is kept, and `{recipe.command}` goes on"
        )


def refuse_alone(recipe: Recipe, todo: Sequence[str]) -> None:
    """Raises InputErrors for stages that one process cannot run."""
    errors = [
        f"{recipe.source}: stages.{name}.{problem}" for name in todo for problem in needs_processes(recipe.stages[name])
    ]
    if errors:
        raise InputErrors(errors)
