"""From what a user names to a recipe on disk."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preceptor.errors import InputError, InputErrors
from preceptor.recipe import parse_recipe
from preceptor.recipe.base import NAME, NAME_RULE
from preceptor.recipe.yaml_text import parse_yaml
from preceptor.starter import choices
from preceptor.starter.data import DataFacts, length_of_most, look_at_data, shared_prompts, texts
from preceptor.starter.machine import this_machine
from preceptor.starter.models import ModelFacts, check_tokenizers, look_at_model, tokenizer_of
from preceptor.starter.text import Found, recipe_text
from preceptor.system.files import write_atomic


@dataclass(frozen=True)
class Asked:
    """What a user names: paths or Hub ids. `experts` are ready models of the domains, one for each, or none."""

    teacher: str
    student: str
    data: Sequence[str]
    domains: Sequence[str] = ()
    experts: Sequence[str] = ()
    lora: bool = False
    quantize: str | None = None
    store: bool = False
    name: str | None = None
    out: str = "recipe.yaml"


@dataclass(frozen=True)
class Started:
    """The recipe that was written; `notes` are what its user should know before running it."""

    path: Path
    run: str
    stages: list[str]
    notes: list[str]


def start(asked: Asked, log: Callable[[str], None]) -> Started:
    """Looks at what was named and writes a recipe for it; never over a file that is there.

    Raises:
        InputError: something named is not there, cannot be read or does not go together.
    """
    out = Path(asked.out)
    _check_out(out)
    if asked.experts and len(asked.experts) != len(asked.domains):
        raise InputError(
            f"preceptor init: --expert is given {_times(len(asked.experts))} and --domain "
            f"{_times(len(asked.domains))}; give an expert for each domain in the same order, or none"
        )
    teacher = look_at_model("--teacher", asked.teacher)
    student = look_at_model("--student", asked.student)
    experts = [look_at_model("--expert", expert, adapter=True) for expert in asked.experts]
    if asked.teacher == asked.student or (teacher.folder is not None and teacher.folder == student.folder):
        raise InputError(f"preceptor init: {asked.student} is given as teacher and as student; give two models")
    if asked.quantize is not None and "quantization_config" in teacher.config:
        raise InputError(f"preceptor init: {asked.teacher} is stored quantised already; leave out --quantize")
    named = [*(("general", path) for path in asked.data), *(("domain", path) for path in asked.domains)]
    data = look_at_data(named, ("said", "kd", "distilled", "dae", "scores"), log)
    found = _found(asked, teacher, student, experts, data)
    text = recipe_text(found, asked.out)
    stages = _checked(text, out)
    try:
        write_atomic(out, text)
    except OSError as error:
        raise InputError(f"preceptor init: {out} cannot be written ({error.strerror}); choose another --out") from None
    return Started(out, f"runs/{found.name}", stages, _notes(asked, found))


def _check_out(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise InputError(f"preceptor init: {out} is there already; give another file with --out, or move that one away")
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"preceptor init: --out is {str(out)!r}; give a file that ends in .yaml")
    if not out.parent.is_dir():
        raise InputError(f"preceptor init: --out is {out}, and there is no folder {out.parent}; create it first")


def _found(
    asked: Asked, teacher: ModelFacts, student: ModelFacts, experts: Sequence[ModelFacts], data: Sequence[DataFacts]
) -> Found:
    tokenizer = tokenizer_of(student)
    theirs = tokenizer_of(teacher)
    compared = tokenizer is not None and theirs is not None
    if tokenizer is not None and theirs is not None:
        check_tokenizers(tokenizer, theirs, texts(data))
    any_tokenizer = tokenizer or theirs
    most = None if any_tokenizer is None else length_of_most(data, any_tokenizer)
    machine = this_machine()
    domains = [each for each in data if each.role == "domain"]
    name = asked.name or (domains[0].name if domains else "distilled")
    if not NAME.fullmatch(name):
        raise InputError(f"preceptor init: --name is {name!r}; write {NAME_RULE}")
    return Found(
        name=name,
        teacher=teacher,
        student=student,
        experts=experts,
        data=data,
        shared=shared_prompts(data),
        tokenizers_agree=compared,
        length=choices.length(most, student, teacher),
        memory=choices.memory(student, teacher, machine, lora=asked.lora, quantize=asked.quantize, store=asked.store),
        lora=asked.lora,
        quantize=asked.quantize,
        store=asked.store,
        here=Path(asked.out).absolute().parent == Path.cwd(),
    )


def _checked(text: str, out: Path) -> list[str]:
    """The stages of the recipe, after it has been loaded as a run would load it."""
    raw: Any = parse_yaml(text, str(out))[0]
    try:
        return list(parse_recipe(raw, folder=out.absolute().parent, name=str(out)).stages)
    except InputErrors as error:  # ours, and not the user's
        raise AssertionError(f"preceptor init wrote a recipe that does not load: {error}") from error


def _notes(asked: Asked, found: Found) -> list[str]:
    notes = []
    hub = [model.path for model in (found.teacher, found.student, *found.experts) if model.folder is None]
    hub += [each.path for each in found.data if each.rows is None]
    if hub:
        notes.append(f"{', '.join(hub)}: not looked at here; preceptor plan does")
    if found.memory.too_little:
        options = [
            ("--lora", not asked.lora),
            ("--quantize 4bit", asked.quantize is None),
            ("--store", not asked.store),
        ]
        untried = [option for option, left in options if left]
        helps = f"; {', '.join(untried)} take less" if untried else ""
        notes.append(f"stage kd needs {found.memory.words}{helps}")
    if asked.quantize is not None and importlib.util.find_spec("bitsandbytes") is None:
        notes.append("a quantised teacher needs bitsandbytes, which is not installed here")
    return notes


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
