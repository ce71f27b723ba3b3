"""Teachers that are stores: which they are, where they lie, and what they must be of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from preceptor.distributed import from_main
from preceptor.errors import InputError, InputErrors
from preceptor.evaluation.endpoint_access import access_key, checked_url
from preceptor.recipe import DistillStage, EndpointSpec, ModelSpec, StoreStage, expand
from preceptor.recipe.storing import follows_store, stored_by, unused_keys
from preceptor.stages.context import StageContext, run_directory
from preceptor.system.files import MANIFEST, is_store
from preceptor.teachers import StoredTeacher
from preceptor.teachers.store import expect
from preceptor.teachers.store_files import check_files, read_manifest
from preceptor.teachers.store_modes import Mode, mode_of

IDENTITY = "store"
"""The key of a store stage's results that says what the store is of."""


def stored_at(model: ModelSpec, context: StageContext) -> Path | None:
    """The folder of the store that a teacher is; None for a model.

    Raises:
        InputError: the folder of a store stage, which has the store in it.
    """
    folder = Path(context.resolve_model(model).path)
    if stored_by(model, context.recipe.stages) is not None:
        return folder
    if not (folder / "config.json").exists() and is_store(folder / "store"):
        raise InputError(
            f"{str(folder)!r} is the folder of a store stage; give the store in it, {str(folder / 'store')!r}"
        )
    # A store that lacks its manifest is no model either, and should be told what it lacks.
    begun = not (folder / "config.json").exists() and not (folder / MANIFEST).exists()
    return folder if is_store(folder) or (begun and any(folder.glob("[0-9]*-[0-9]*.safetensors"))) else None


def mode_for(stage: StoreStage, tokenizer: PreTrainedTokenizerBase) -> Mode:
    """What a store stage keeps of each distribution."""
    return mode_of(stage.mode, vocabulary=len(tokenizer), temperature=stage.temperature, draws=stage.draws, k=stage.k)


def manifest_of(model: ModelSpec, folder: Path, context: StageContext) -> dict[str, Any]:
    """The manifest of a teacher's store; of a stage's store only if it is what that stage recorded.

    Raises:
        InputError: no finished store, or another one in its place.
    """
    manifest = read_manifest(folder)
    stage = stored_by(model, context.recipe.stages)
    if stage is not None and (expected := _recorded(context, stage)) is not None:
        expect(folder, manifest, expected, f"stage {stage} recorded")
    return manifest


def title_of(model: ModelSpec, context: StageContext) -> str:
    """What a card calls a teacher: of a store, whose predictions it holds too."""
    folder = stored_at(model, context)
    if folder is None:
        return model.title
    manifest = read_manifest(folder)
    return f"{model.title} (stored predictions of {manifest['teacher']['model']}, {manifest['mode']})"


def open_store(
    model: ModelSpec, folder: Path, tokenizer: PreTrainedTokenizerBase, context: StageContext
) -> StoredTeacher:
    """The teacher of a store, after every byte of it was compared with its manifest.

    Raises:
        InputError: a store that is not whole, of another tokenizer or template, or not what its stage wrote.
    """
    manifest = manifest_of(model, folder, context)
    # Read by one process: the others would only wait for the same disk.
    size: int = from_main(lambda: check_files(folder, manifest))
    context.log(f"{context.name}: {model.path}: {size / 1e6:,.1f} MB compared with their checksums")
    return StoredTeacher(folder, tokenizer=tokenizer, name=f"teacher {model.path}", verify=False)


def _recorded(context: StageContext, stage: str) -> Mapping[str, Any] | None:
    """What a finished store stage says its store is of."""
    path = run_directory(context.recipe) / stage / "stage.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["results"][IDENTITY])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # `runs` refuses what it cannot read


def check_stored(stage: DistillStage, context: StageContext) -> None:
    """What can be refused of a stage's stores, as far as they are there, before anything runs.

    Raises:
        InputErrors: a store that is not whole in number and size, or that cannot give what a term follows.
    """
    errors: list[str] = []
    for key, model in stage.teachers.items():
        folder = stored_at(model, context)
        if folder is None or not folder.exists():
            continue
        own = stored_by(model, context.recipe.stages) is not None
        if own and not (folder / MANIFEST).exists() and not (folder.parent / "stage.json").exists():
            continue  # a stage of this recipe has begun it, and goes on first
        where = "" if len(key) == 1 else f"{'.'.join(map(str, key))}: "
        try:
            manifest = read_manifest(folder)
            check_files(folder, manifest, whole=False)
        except InputError as error:
            errors.append(f"{where}{error}")
            continue
        if own:
            continue  # the recipe has been checked
        for unused in unused_keys(model):
            errors.append(f"{where}{unused} is of no use to {model.path!r}, which is stored; remove it")
        for path, what in follows_store(stage, key, str(manifest["mode"]), float(manifest["temperature"])):
            errors.append(f"{'.'.join(map(str, path))} {what}")
    if errors:
        raise InputErrors(errors)


def access_of(spec: EndpointSpec, where: str) -> tuple[str, str | None]:
    """A served teacher's base URL and its access key; `where` begins what is said, such as `teacher.`.

    Raises:
        InputErrors: no URL of an endpoint, or one that holds a password; a variable that holds nothing usable as a key.
    """
    errors: list[str] = []
    url, key = "", None
    try:
        address = expand(spec.endpoint)
    except InputError as error:
        errors.append(f"{where}endpoint: {error}")
    else:
        try:
            url = checked_url(address, where)
        except InputError as error:
            errors.append(str(error))
    try:
        key = access_key(spec.key_env, where)
    except InputError as error:
        errors.append(str(error))
    if errors:
        raise InputErrors(errors)
    return url, key


def check_served(stage: StoreStage) -> None:
    """What can be refused of a served teacher before any stage runs; nothing is sent.

    Raises:
        InputErrors: as `access_of`, in sentences that begin with `teacher.`.
    """
    if isinstance(stage.teacher, EndpointSpec):
        access_of(stage.teacher, "teacher.")
