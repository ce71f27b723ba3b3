"""Write docs/recipe_reference.md: every key of a recipe, from the specs that check it.

    python scripts/recipe_reference.py           # writes the page
    python scripts/recipe_reference.py --check   # exit 1 where the page is not what would be written

Names, defaults and accepted values are read from the pydantic fields. What a key accepts is asked of the check itself,
by giving it something no key takes; so the page cannot promise what the check refuses. Descriptions are the string
literals below the fields: they are read from the source here, so that reading a recipe need not.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from preceptor.recipe import (
    OWNED_TRAINING_KEYS,
    DatasetSpec,
    EndpointSpec,
    LoraSpec,
    ModelSpec,
    OverlapSpec,
    Recipe,
    RoutesSpec,
    ShareSpec,
    TrainTokenizerSpec,
)
from preceptor.recipe.objective import TAUGHT, TERMS
from preceptor.recipe.stages import KINDS
from preceptor.recipe.suites import AlpacaEvalSpec, MtBenchSpec, PriceSpec, TasksSpec

A_MODEL = "a folder, a Hub id, `stage:NAME`, or a mapping with `path`"
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "recipe_reference.md"
Spec = type[BaseModel]

STAGES: dict[Spec, str] = {spec: f"{kind} stage" for kind, spec in KINDS.items()}
PARTS: dict[Spec, str] = {
    DatasetSpec: "Dataset",
    OverlapSpec: "Overlap",
    ModelSpec: "Model",
    RoutesSpec: "Teachers by route",
    ShareSpec: "Teacher of a shared route",
    LoraSpec: "LoRA",
    **{spec: f"{kind} term" for kind, spec in TERMS.items()},
    TrainTokenizerSpec: "Trained tokenizer",
    EndpointSpec: "Endpoint",
    PriceSpec: "Price",
    MtBenchSpec: "MT-Bench",
    AlpacaEvalSpec: "AlpacaEval",
    TasksSpec: "Tasks",
}
TITLES: dict[Spec, str] = {Recipe: "Recipe", **STAGES, **PARTS}

INTRODUCTION = """\
# Recipe reference

Every key of a recipe: what it accepts, what it is where you leave it out, and what it does. For the way the parts work
together read [Recipe](recipe.md) first. This page is written by `scripts/recipe_reference.py` from the code that checks
recipes; do not edit it.

A default of – means that the key is required; *none* that the key may be left out. Keys that are not here are errors.
"""

TRAINING = """\
## training

Keys of `transformers.TrainingArguments`, as that library describes them: `learning_rate`, `num_train_epochs` or
`max_steps`, `per_device_train_batch_size`, `warmup_steps`, `lr_scheduler_type`, `optim`, `weight_decay`, `bf16`,
`gradient_checkpointing`, `logging_steps`, `save_steps`, `eval_strategy`, `report_to`, `fsdp`, `deepspeed` and so on,
with their defaults but for {ours}. These are refused, because preceptor sets them itself:

| refused key | instead |
|---|---|
"""


class _Nothing:
    """A value that no key accepts."""


def main(arguments: list[str]) -> int:
    """Write the page, or compare it."""
    text = page()
    if "--check" not in arguments:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE.name} is not what the specs say; run python scripts/recipe_reference.py", file=sys.stderr)
    return 1


def page() -> str:
    """The whole page."""
    refused = "".join(f"| `{key}` | {instead} |\n" for key, instead in OWNED_TRAINING_KEYS.items())
    ours = ", ".join(f"`{key}: {yaml(value)}`" for key, value in training_defaults().items())
    parts = [INTRODUCTION, *(section(spec) for spec in (Recipe, *STAGES)), TRAINING.format(ours=ours) + refused]
    return "\n".join([*parts, *(section(spec) for spec in PARTS)])


def training_defaults() -> dict[str, Any]:
    """Defaults that differ from transformers'; read from the source, for importing it would import torch."""
    tree = ast.parse((ROOT / "src" / "preceptor" / "stages" / "build.py").read_text(encoding="utf-8"))
    for line in tree.body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "DEFAULTS":
            return dict(ast.literal_eval(line.value))
    raise AssertionError("no DEFAULTS")


def section(spec: Spec) -> str:
    """One spec as a heading, its docstring and a table of its keys."""
    said = "The top of the file." if spec is Recipe else " ".join(inspect.cleandoc(spec.__doc__ or "").split())
    fields = [(name, info) for name, info in spec.model_fields.items() if name != "kind" or is_choice(info)]
    fields.sort(key=lambda field: field[0] not in documented(spec))  # what a kind shares with others comes last
    rows = [row(spec, name, info) for name, info in fields]
    kind = kind_of(spec)
    head = f"## {TITLES[spec]}\n\n" + (f"`kind: {kind}`. " if kind else "") + linked(said)
    return f"{head}\n\n| key | accepted | default | |\n|---|---|---|---|\n" + "".join(rows)


def row(spec: Spec, name: str, info: FieldInfo) -> str:
    """A key's line of the table."""
    key = info.alias or name
    cells = (f"`{key}`", accepted(info, spec), default(info), linked(description(spec, name)))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def kind_of(spec: Spec) -> str | None:
    """The one value of its `kind`, where it is told apart by one."""
    info = spec.model_fields.get("kind")
    return None if info is None or is_choice(info) else str(get_args(info.annotation)[0])


def is_choice(info: FieldInfo) -> bool:
    """Whether a `kind` is a choice of the user's rather than the tag of the spec."""
    return len(get_args(info.annotation)) != 1


# --- what a key accepts -----------------------------------------------------------------------------------------


def accepted(info: FieldInfo, owner: Spec) -> str:
    """In words, with links to the specs that may stand there."""
    annotation: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    inside = list(dict.fromkeys(specs_in(annotation)))
    untaught = owner is KINDS["sft"]
    terms = [spec for kind, spec in TERMS.items() if spec in inside and not (untaught and kind in TAUGHT)]
    if terms:
        return "a list of terms: " + ", ".join(link(spec, kind_of(spec)) for spec in terms)
    if {DatasetSpec, *STAGES} & set(inside):
        return "a mapping from names to " + ("[datasets](#dataset)" if DatasetSpec in inside else "stages")
    words = refusal(annotation)
    if words is not None and words.startswith(A_MODEL):
        words = None
    links = [link(spec) for spec in inside if spec is not ShareSpec]
    if ShareSpec in inside:
        return f"{words}; {link(ShareSpec)}"
    if ModelSpec in inside and RoutesSpec in inside:
        return f"{link(ModelSpec)}, or {link(RoutesSpec)}"
    if words is None:
        return " or ".join(links)
    return f"{words} ({', '.join(links)})" if links else words


def refusal(annotation: Any) -> str | None:
    """What the check of `annotation` says it wants, without the verb; None for a bare spec."""
    try:
        TypeAdapter(annotation).validate_python(_Nothing())
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
    wanted = [error["msg"].removeprefix("write ") for error in errors if error["type"] == "wanted"]
    if wanted:
        return code(wanted[0], literals(annotation))
    types = {error["type"] for error in errors}
    if "bool_type" in types:
        return "`true` or `false`"
    if "dict_type" in types:
        return f"a mapping from names to {values(annotation)}"
    if "list_type" in types:
        return f"a list of {values(annotation)}"
    if types <= {"model_type", "union_tag_not_found", "model_attributes_type"}:
        return None
    raise AssertionError(f"{annotation}: no words for {types}")


def values(annotation: Any) -> str:
    """What the items of a list or the values of a mapping are, in the plural."""
    if any(spec is ModelSpec for spec in specs_in(annotation)):
        return "models"
    choices = literals(annotation)
    if choices:
        return " and ".join(f"`{choice}`" for choice in choices)
    inner = get_args(next(each for each in walk(annotation) if get_origin(each) in (list, dict)))[-1]
    words = "anything" if inner is Any else refusal(inner) if inner is not str else "names"
    return re.sub(r"^a number\b", "numbers", {"text": "texts"}.get(words or "", words or ""))


def literals(annotation: Any) -> list[str]:
    """The words of every Literal inside."""
    return [str(word) for each in walk(annotation) if get_origin(each) is Literal for word in get_args(each)]


def specs_in(annotation: Any) -> Iterator[Spec]:
    """The specs inside an annotation, in order."""
    for each in walk(annotation):
        if isinstance(each, type) and issubclass(each, BaseModel):
            yield each


def walk(annotation: Any) -> Iterator[Any]:
    """An annotation and everything inside it."""
    yield annotation
    if get_origin(annotation) in (Union, UnionType, Annotated, list, dict, tuple):
        inner = get_args(annotation)
        for each in inner[:1] if get_origin(annotation) is Annotated else inner:
            yield from walk(each)


# --- defaults and descriptions ----------------------------------------------------------------------------------


def default(info: FieldInfo) -> str:
    """The default as it would be written in YAML."""
    value = info.get_default(call_default_factory=True) if not info.is_required() else PydanticUndefined
    if value is PydanticUndefined:
        return "–"
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        return f"`[{', '.join(f'{{kind: {kind_of(type(each))}}}' for each in value)}]`"
    if value is None or value in ([], {}, ()):
        return "*none*"
    return f"`{yaml(value)}`"


def yaml(value: Any) -> str:
    """A scalar as YAML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def description(spec: Spec, name: str) -> str:
    """The string literal below a field, of the class that defines it or the nearest that says more."""
    for base in spec.__mro__:
        found = documented(base).get(name) if issubclass(base, BaseModel) and base is not BaseModel else None
        if found:
            return found
    raise AssertionError(f"{spec.__name__}.{name} has no description; write one below it")


def documented(spec: Spec) -> dict[str, str]:
    """The string literals below the fields of a class."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(spec))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:]):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            found[field.target.id] = " ".join(below.value.value.split())
    return found


# --- Markdown ---------------------------------------------------------------------------------------------------


def link(spec: Spec, title: str | None = None) -> str:
    """A link to a spec's section."""
    anchor = re.sub(r"[^\w\s-]", "", TITLES[spec]).strip().lower().replace(" ", "-")
    return f"[{title or TITLES[spec]}](#{anchor})"


def linked(text: str) -> str:
    """A docstring for readers of YAML: arXiv numbers and pages as links, and a key left out instead of None."""
    text = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text.replace("``", "`"))
    text = re.sub(r"\b(\w+)\.md\b", r"[\1](\1.md)", text)
    text = re.sub(r"(^|[.;] )None(?: is| means|:)? ", lambda match: f"{match[1]}without it: ", text)
    return re.sub(r"(^|\. )without it", lambda match: f"{match[1]}Without it", text)


def code(words: str, choices: list[str]) -> str:
    """The words of a message with their literal parts in backticks."""
    words = words.replace("text that is not empty", "text").replace("such texts", "texts")
    words = words.replace("names that is not empty", "names")
    for choice in dict.fromkeys(choices):
        words = re.sub(rf"\b{choice}\b", f"`{choice}`", words)
    return re.sub(r"(?<![`\w])(\{[^}]*\}|\[\{[^\]]*\}\])", r"`\1`", words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
