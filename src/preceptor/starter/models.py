"""What the named models are, from their configs, the headers of their weights and their tokenizer files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preceptor.errors import InputError, first_sentence, shown
from preceptor.models.headers import read_header
from preceptor.recipe import local_path
from preceptor.recipe.base import stage_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class ModelFacts:
    """A model as named; `folder` is None for one on the Hub, of which nothing else is known here.

    `bytes` is the size of its weights in their files, `positions` the longest text that it was made for.
    """

    path: str
    folder: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    bytes: int | None = None
    base: str | None = None
    """Of an adapter: the model that it was trained on."""

    @property
    def positions(self) -> int | None:
        """The longest text that the model was made for, in tokens."""
        found = self.config.get("max_position_embeddings")
        return found if type(found) is int and found > 1 else None

    @property
    def words(self) -> str:
        """Such as `mistral, 7.24 billion parameters`."""
        if self.folder is None:
            return "on the Hub, not looked at here"
        kind = str(self.config.get("model_type", "adapter"))
        if self.parameters is None:
            return kind
        for name, scale in (("billion", 1e9), ("million", 1e6)):
            if self.parameters >= scale:
                return f"{kind}, {self.parameters / scale:.3g} {name} parameters"
        return f"{kind}, {self.parameters:,} parameters"


def look_at_model(option: str, path: str, *, adapter: bool = False) -> ModelFacts:
    """Looks at a folder; a Hub id is taken as it is. `adapter` accepts a PEFT adapter too.

    Raises:
        InputError: there is no such folder, or it holds no model, or one whose files are damaged.
    """
    where = f"preceptor init: {option} {path}"
    if stage_of(path) is not None or path.startswith(("http://", "https://")):
        raise InputError(f"{where}: give a model's folder or a Hub id such as org/name")
    try:
        folder = local_path(path, Path.cwd())
    except InputError as error:
        raise InputError(f"preceptor init: {option} {error}") from None
    if folder is None:
        return ModelFacts(path)
    if not folder.is_dir():
        raise InputError(f"{where}: is a file; give the folder that holds config.json and the weights")
    if not (folder / "config.json").is_file():
        settings = folder / "adapter_config.json"
        if not settings.is_file():
            raise InputError(f"{where}: the folder holds no config.json; give the folder that `save_pretrained` wrote")
        base = _read(settings, where).get("base_model_name_or_path")
        if not adapter:
            raise InputError(f"{where}: the folder holds an adapter, and no model; merge it into its model first")
        if not isinstance(base, str) or not base:
            raise InputError(f"{where}: adapter_config.json names no base_model_name_or_path; add it")
        return ModelFacts(path, folder, base=base)
    config = _read(folder / "config.json", where)
    tensors = [t for file in sorted(folder.glob("model*.safetensors")) for t in read_header(file, where).values()]
    if not tensors:
        raise InputError(
            f"{where}: the folder holds no weights as safetensors (model.safetensors is missing); copy or download "
            "the whole folder, or convert it with `save_pretrained`"
        )
    return ModelFacts(path, folder, config, sum(prod(t.shape) for t in tensors), sum(t.bytes for t in tensors))


def _read(file: Path, where: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{where}: {file.name} is not readable JSON ({first_sentence(error)}); mend it") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: {file.name} holds {type(value).__name__}, not an object; mend it")
    return value


def tokenizer_of(model: ModelFacts) -> Tokenizer | None:
    """The model's tokenizer; None where it is not here or has no `tokenizer.json`, which a plan reads otherwise."""
    file = None if model.folder is None else model.folder / "tokenizer.json"
    if file is None or not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises the bare class
        raise InputError(
            f"preceptor init: tokenizer of {model.path}: could not be read ({first_sentence(error)}); copy its files "
            "again"
        ) from None


def check_tokenizers(student: Tokenizer, teacher: Tokenizer, texts: list[str]) -> None:
    """Makes sure that both have the same tokens and cut `texts` alike, as a distillation needs.

    Raises:
        InputError: naming the first token that differs, or a text that is cut otherwise.
    """
    mend = "distil between models of one tokenizer"
    ours, theirs = ({i: token for token, i in each.get_vocab().items()} for each in (student, teacher))
    if ours != theirs:
        first = min(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
        names = [shown(each[first], 30) if first in each else "absent" for each in (ours, theirs)]
        raise InputError(
            f"preceptor init: the student's tokenizer ({len(ours):,} tokens) is not the teacher's ({len(theirs):,} "
            f"tokens): token {first} is {names[0]} for the student and {names[1]} for the teacher; {mend}"
        )
    for text in texts:
        if student.encode(text, add_special_tokens=False).ids != teacher.encode(text, add_special_tokens=False).ids:
            raise InputError(
                "preceptor init: the student's tokenizer has the teacher's tokens but cuts text otherwise, for example "
                f"{shown(text, 40)}; {mend}"
            )
