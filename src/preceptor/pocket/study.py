"""The pocket study as recipes: its sizes, its student, and the data files and stages of one seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preceptor.pocket.methods import EXPERT, METHODS, REFERENCE, TEACHER, TEACHER_SPEC, Length, Method
from preceptor.pocket.shop import make_shop_rows
from preceptor.pocket.tasks import make_rows
from preceptor.pocket.write_data import write_rows
from preceptor.system.files import write_atomic

NOISE = 0.15
"""Share of public training rows whose answer is wrong, truncated or sloppy."""
TEST_ROWS = 480
FIRST_SEED = 43
SCORES = "scores"
UNSCORED = ("pair",)
"""Models that are only begun from."""

STUDENT = {
    "model_type": "mistral",
    "hidden_size": 96,
    "intermediate_size": 288,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 24,
    "max_position_embeddings": 64,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "initializer_range": 0.06,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Size:
    """How long each stage trains.

    Stage 1 takes `steps` optimiser steps of `rows_per_step` rows, each public row seen `epochs` times; the expert takes
    `expert_steps` on `shop_rows` rows, and every aligned model `align_steps`.
    """

    steps: int = 500
    rows_per_step: int = 64
    epochs: int = 2
    shop_rows: int = 4000
    expert_steps: int = 300
    align_steps: int = 600

    @property
    def rows(self) -> int:
        return self.steps * self.rows_per_step // self.epochs

    def of(self, length: Length) -> tuple[int, int]:
        """Optimiser steps, and epochs they are parted into."""
        if length == "distil":
            return self.steps, self.epochs
        return (self.expert_steps if length == "expert" else self.align_steps), 1


def study_recipe(
    seed: int, size: Size, methods: Iterable[str], elsewhere: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """The recipe of one seed: an untrained student, the named methods as stages, and the scores of all of them.

    Models that other recipes make are named by their folders, `elsewhere`; they are scored too. A recipe without the
    reference and the expert has no scores.
    """
    names = list(methods)
    folders = {name: str(path) for name, path in (elsewhere or {}).items()}
    stages = {name: _linked(_stage(METHODS[name], size), folders) for name in names}
    if REFERENCE in names and EXPERT in names:
        models = {name: f"stage:{name}" for name in names if name not in UNSCORED}
        stages[SCORES] = {
            "kind": "evaluate",
            "models": {"teacher": TEACHER_SPEC, **models, **folders},
            "reference": f"stage:{REFERENCE}",
            "expert": f"stage:{EXPERT}",
            "on": ["public", "shop"],
            "max_length": 64,
            "max_new_tokens": 32,
            "batch_size": 128,
        }
    return {
        "name": f"pocket-{seed}",
        "seed": seed,
        "data": {
            "public": {"path": "public.jsonl", "test": "test.jsonl", "role": "general"},
            "shop": {"path": "shop.jsonl", "test": "shop_test.jsonl", "role": "domain"},
        },
        "stages": {
            "student": {"kind": "init", "config": STUDENT, "tokenizer": str(TEACHER)},
            **stages,
        },
    }


def _linked(value: Any, folders: Mapping[str, str]) -> Any:
    """`value` with each `stage:NAME` that another recipe makes replaced by its folder."""
    if isinstance(value, Mapping):
        return {key: _linked(item, folders) for key, item in value.items()}
    if isinstance(value, list):
        return [_linked(item, folders) for item in value]
    return folders.get(value.removeprefix("stage:"), value) if isinstance(value, str) else value


def _stage(method: Method, size: Size) -> dict[str, Any]:
    if method.learning_rate is None:
        return dict(method.stage)
    steps, epochs = size.of(method.length)
    training = {
        "learning_rate": method.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": steps // 10,
        "weight_decay": 0.01,
        "adam_beta2": 0.99,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": size.rows_per_step,
        "per_device_eval_batch_size": 128,
        "logging_steps": max(1, steps // 50),
        "save_strategy": "no",
        "use_cpu": True,
    }
    rows = {"rows": steps * size.rows_per_step // epochs, "rows_per_step": size.rows_per_step, "max_length": 64}
    return {"data": "public", **method.stage, **rows, "training": training}


class _Plain(yaml.SafeDumper):
    """Writes what is used twice twice, for people read recipes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_study(
    folder: Path,
    seed: int,
    size: Size,
    methods: Iterable[str],
    *,
    noise: float = NOISE,
    public_rows: int | None = None,
    elsewhere: Mapping[str, Path] | None = None,
) -> Path:
    """Write one seed's data files and recipe into `folder`; returns the recipe's path.

    `public_rows` are the first so many of the public rows instead of all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "public.jsonl", make_rows("train", size.rows, seed, noise=noise)[:public_rows])
    write_rows(folder / "test.jsonl", make_rows("test", TEST_ROWS, seed))
    write_rows(folder / "shop.jsonl", make_shop_rows("train", size.shop_rows, seed))
    write_rows(folder / "shop_test.jsonl", make_shop_rows("test", TEST_ROWS, seed))
    note = (
        f"# The pocket study, seed {seed}: public.jsonl carries {noise:.0%} label noise, the other files none.\n"
        "# Run it whole with `preceptor run recipe.yaml`; the demo runs its stages side by side.\n"
    )
    path = folder / "recipe.yaml"
    write_atomic(path, note + yaml.dump(study_recipe(seed, size, methods, elsewhere), Dumper=_Plain, sort_keys=False))
    return path
