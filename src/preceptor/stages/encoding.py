"""A stage's rows as tokens: one way, so that what a `store` stage keeps is found by those that learn from it."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from preceptor.data.prepare import PreparedDataset, prepare_datasets
from preceptor.data.template import choose_template
from preceptor.errors import InputError
from preceptor.models.tokenizers import load_tokenizer, same_tokenizer, template_facts, tokenizer_facts
from preceptor.recipe import DistillStage, ModelSpec, SftStage, StoreStage
from preceptor.recipe.base import KeyPath
from preceptor.stages.context import StageContext
from preceptor.stages.datasets import specs_for
from preceptor.stages.stores import manifest_of, stored_at
from preceptor.teachers.store import expect


def stage_tokenizer(
    student: ModelSpec, teachers: Mapping[KeyPath, ModelSpec], context: StageContext
) -> PreTrainedTokenizerBase:
    """The student's tokenizer, which every teacher shares; without a chat template it takes its first teacher's.

    `student` is resolved, `teachers` are as the recipe has them, by their keys in the stage.

    Raises:
        InputError: a tokenizer that cannot be loaded, or a teacher's that is another one; a store of another template.
    """
    tokenizer = load_tokenizer(student, announce=context.log)
    theirs: PreTrainedTokenizerBase | str | None = None
    for key, model in teachers.items():
        # Of several teachers it matters which one.
        where = "" if len(key) == 1 else f"stages.{context.name}.{'.'.join(map(str, key))}: "
        try:
            other = _shared(tokenizer, model, context)
        except InputError as error:
            raise InputError(f"{where}{error}") from error
        theirs = other if theirs is None else theirs
    source = choose_template(tokenizer, theirs)
    if source != "student":
        whose = {"teacher": "the teacher's", "default": "preceptor's own"}[source]
        context.log(f"{context.name}: the student has no chat template; {whose} is used and saved with it")
    for model in teachers.values():
        if (store := stored_at(model, context)) is not None:
            used = {"template": template_facts(tokenizer)}
            expect(store, manifest_of(model, store, context), used, "the student's is")
    return tokenizer


def _shared(
    tokenizer: PreTrainedTokenizerBase, teacher: ModelSpec, context: StageContext
) -> PreTrainedTokenizerBase | str:
    """A teacher's tokenizer, or of a stored one the chat template, after comparing it with the student's."""
    store = stored_at(teacher, context)
    if store is not None:
        manifest = manifest_of(teacher, store, context)
        expect(store, manifest, {"tokenizer": tokenizer_facts(tokenizer)}, "the student's is")
        return str(manifest["template"]["text"])
    other = load_tokenizer(context.resolve_model(teacher))
    same_tokenizer(tokenizer, other)
    return other


def stage_rows(
    spec: SftStage | DistillStage | StoreStage, tokenizer: PreTrainedTokenizerBase, context: StageContext
) -> dict[str, PreparedDataset]:
    """The stage's datasets, prompts compared among all datasets of the recipe that exist by now.

    Raises:
        InputError: as `prepare_datasets`.
    """
    names = spec.dataset_names
    specs, generated = specs_for(names, context)
    if spec.targets is not None:
        specs |= {name: specs[name].model_copy(update={"targets": spec.targets}) for name in names}
    return prepare_datasets(
        names,
        specs,
        tokenizer,
        seed=context.seed,
        max_length=spec.max_length,
        overlap=context.recipe.overlap,
        announce=context.log,
        generated=generated,
    )
