"""A folder in which what the documentation shows can be run: toy models and data under the names that it uses.

A path without a file stands first for a folder beside the recipe and only then for something on the Hub, so a toy model
in the folder `mistralai/Mistral-7B-v0.1` makes a shown recipe run as it is printed. Only sizes are turned down.
"""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import yaml

import first_folder

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 :.,?!'-\n<|>_/=+*()ABCDEFGHIJKLMNOPQRSTUVWXYZ[]é"
LENGTH = 96
STEPS = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "logging_steps": 1}


@cache
def toy_model() -> Path:
    """A model folder: Mistral architecture, 2 layers of 64, one token per character."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *CHARACTERS]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    folder = Path(mkdtemp(prefix="toy-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, sliding_window=None,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(name: str, count: int = 40) -> list[dict[str, Any]]:
    """Chats that no other dataset has."""
    return first_folder.rows(range(count), about=f"{name}: ", metric="exact")


def write_rows(path: Path, name: str) -> None:
    """A data file of the kind its name says, or a Hub dataset's folder where the name has no ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".jsonl", ".json"):
        first_folder.write_rows(path, rows(name))
    elif path.suffix == ".txt":
        path.write_text("\n\n".join(f"{name} tells story {i}." for i in range(40)), encoding="utf-8")
    else:
        raise AssertionError(f"no toy data for {path}")


def settle(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Puts what a recipe names into `folder`, and turns its sizes down. Returns the recipe that is to be run there."""
    for name, data in recipe.get("data", {}).items():
        for key in ("path", "test"):
            given = data.get(key)
            for text in [given] if isinstance(given, str) else given or []:
                if text.startswith("stage:") or (folder / text).exists():
                    continue
                if Path(text).suffix:
                    write_rows(folder / text, f"{name} {key}")
                else:
                    write_hub_dataset(folder / text, name, data.get("split", "train"))
        if isinstance(data.get("holdout"), int):
            data["holdout"] = min(data["holdout"], 4)
        data.pop("max_length", None)
    for stage in recipe["stages"].values():
        turn_down(stage)
        put_models(stage, folder)
    return recipe


def write_hub_dataset(folder: Path, name: str, split: str) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.DatasetDict({split: datasets.Dataset.from_list(rows(name))}).save_to_disk(folder)


def turn_down(stage: dict[str, Any]) -> None:
    """One step, few and short rows; what needs several processes or a GPU is left out."""
    kind = stage["kind"]
    if kind in ("sft", "distill"):
        training = stage.setdefault("training", {})
        for key in ("num_train_epochs", "fsdp", "deepspeed", "save_steps", "gradient_checkpointing", "warmup_steps"):
            training.pop(key, None)
        training |= {"report_to": "none", **training, **STEPS}
        stage["rows_per_step"] = 2
        stage.pop("rows", None)
    if kind in ("sft", "distill", "store", "evaluate"):
        stage["max_length"] = LENGTH
    if kind in ("generate", "evaluate"):
        stage["max_new_tokens"] = 4
    stage |= {"generate": {"rows": 8}, "evaluate": {"resamples": 100}, "compose": {}}.get(kind, {})
    if "prompt_rows" in stage or ("prompts" in stage and kind == "compose"):
        stage["prompt_rows"] = 4
    teacher = stage.get("teacher")
    if isinstance(teacher, dict):
        teacher.pop("sharded", None)


MODEL_KEYS = ("model", "student", "teacher", "reference", "expert", "base", "tokenizer", "experts", "models")


def put_models(stage: dict[str, Any], folder: Path) -> None:
    """A toy model in the place of each that the stage names."""
    for path in model_paths([stage[key] for key in MODEL_KEYS if key in stage]):
        if path.startswith("stage:") or path == "average" or (folder / path).exists():
            continue
        shutil.copytree(toy_model(), folder / path)


def model_paths(given: Any) -> list[str]:
    """The paths in a model, a list of models, a mapping of them, or teachers by route."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list):
        return [path for each in given for path in model_paths(each)]
    if isinstance(given, dict) and ("endpoint" in given or "train_on" in given):
        return []
    if isinstance(given, dict) and "path" in given:
        return [given["path"]]
    keys = [each for key, each in given.items() if key != "weight"] if isinstance(given, dict) else []
    return [path for each in keys for path in model_paths(each)]


def shown(text: str, folder: Path, path: Path) -> Path:
    """A shown recipe as the file `path`: loaded as it is printed, then settled."""
    from preceptor.recipe import load_recipe
    from preceptor.recipe.yaml_text import parse_yaml

    path.write_text(text, encoding="utf-8")
    assert load_recipe(path).stages
    raw, _ = parse_yaml(text, str(path))
    return written(settle(raw, folder), path)


@contextmanager
def served(text: str) -> Iterator[str]:
    """A recipe's text whose vLLM server, where it names one, is a stub that answers with the toy model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import vllm_stub

    address = "http://127.0.0.1:8000/v1"
    if address not in text:
        yield text
        return
    model = AutoModelForCausalLM.from_pretrained(toy_model()).eval()
    tokenizer = AutoTokenizer.from_pretrained(toy_model())
    stub = vllm_stub.Stub(model, lambda token: tokenizer.decode([token]))
    with vllm_stub.serving(stub):
        yield text.replace(address, stub.url)


def written(recipe: dict[str, Any], path: Path) -> Path:
    """The recipe as a file."""
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path
