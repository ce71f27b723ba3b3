"""The init stage: weights from the seed, a tokenizer trained on training rows alone, ids that fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from preceptor.data.template import DEFAULT_TEMPLATE, ChatTemplate
from preceptor.models.load import load_model
from preceptor.models.tokenizers import load_tokenizer, train_tokenizer
from preceptor.recipe import ModelSpec, parse_recipe
from preceptor.stages.context import StageContext
from preceptor.stages.init import execute
from preceptor.system.files import verify_directory

CONFIG = {
    "model_type": "mistral",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 48,
}


def run(folder: Path, *, seed: int = 3, data: dict[str, Any] | None = None, **stage: Any) -> dict[str, Any]:
    raw = {
        "name": "r",
        "seed": seed,
        "runs_dir": str(folder / "runs"),
        "data": data or {},
        "stages": {"student": {"kind": "init", "config": CONFIG, **stage}},
    }
    recipe = parse_recipe(raw, folder=folder)
    directory = folder / "runs" / "r" / "student"
    directory.mkdir(parents=True, exist_ok=True)
    return execute(recipe.stages["student"], StageContext(recipe, "student", directory, seed, print))


def model_of(folder: Path) -> Path:
    return folder / "runs" / "r" / "student" / "model"


def rows(folder: Path) -> None:
    lines = []
    for i in range(40):
        messages = [{"role": "user", "content": f"count to {i}"}, {"role": "assistant", "content": f"it is {i}"}]
        lines.append(json.dumps({"messages": messages}))
    (folder / "a.jsonl").write_text("\n".join(lines))


def test_a_tokenizer_trained_here(tmp_path: Path) -> None:
    rows(tmp_path)
    tokenizer = {"train_on": "a", "vocab_size": 280}
    result = run(tmp_path, data={"a": {"path": "a.jsonl"}}, tokenizer=tokenizer, chat_template="default")
    verify_directory(model_of(tmp_path))
    spec = ModelSpec(path=str(model_of(tmp_path)))
    loaded, model = load_tokenizer(spec), load_model(spec, role="student")
    assert result["vocabulary"] == len(loaded) == model.config.vocab_size <= 280
    assert result["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert loaded.chat_template == DEFAULT_TEMPLATE
    assert loaded.model_max_length == 48
    config = model.config
    ids = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    assert ids == (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id)
    assert model(torch.tensor([loaded("count to 3")["input_ids"]])).logits.shape[-1] == len(loaded)


def test_held_out_rows_are_not_seen(tmp_path: Path) -> None:
    text = [json.dumps({"messages": [{"role": "user", "content": w}, {"role": "assistant", "content": "ok"}]}) for w in
            "αβγδεζηθικλμ"]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(text))
    tokenizer = {"train_on": "a", "vocab_size": 100, "kind": "characters"}
    run(tmp_path, data={"a": {"path": "a.jsonl", "holdout": 4}}, tokenizer=tokenizer)
    vocabulary = load_tokenizer(ModelSpec(path=str(model_of(tmp_path)))).get_vocab()
    assert sum(letter in vocabulary for letter in "αβγδεζηθικλμ") == 8


def test_characters_of_the_template_are_in_the_vocabulary(tmp_path: Path) -> None:
    rows(tmp_path)
    tokenizer = {"train_on": "a", "vocab_size": 100, "kind": "characters"}
    run(tmp_path, data={"a": {"path": "a.jsonl"}}, tokenizer=tokenizer, chat_template="default")
    loaded = load_tokenizer(ModelSpec(path=str(model_of(tmp_path))))
    text = ChatTemplate(loaded).render(
        [{"role": "user", "content": "count to 3"}, {"role": "assistant", "content": "it is 3"}]
    )
    assert loaded.unk_token_id not in loaded(text, add_special_tokens=False)["input_ids"]


def test_the_seed_fixes_the_weights_and_nothing_else_is_disturbed(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        (tmp_path / name).mkdir()
        run(tmp_path / name, seed=seed, config={**CONFIG, "vocab_size": 30})
        return load_file(model_of(tmp_path / name) / "model.safetensors")

    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    first = weights("a", 1)
    assert torch.equal(torch.rand(3), expected)
    again, other = weights("b", 1), weights("c", 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_half_precision_is_the_float32_draw_rounded(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        (tmp_path / dtype).mkdir()
        run(tmp_path / dtype, config={**CONFIG, "vocab_size": 30}, dtype=dtype)
    full, half = (load_file(model_of(tmp_path / d) / "model.safetensors") for d in ("float32", "bfloat16"))
    assert all(torch.equal(full[name].bfloat16(), half[name]) for name in full)


def test_a_given_tokenizer_whose_padding_is_its_end_token(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["abc"], vocab_size=50, kind="characters", announce=print)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "tok")
    run(tmp_path, tokenizer="tok", config={**CONFIG, "vocab_size": 64})
    config = json.loads((model_of(tmp_path) / "config.json").read_text())
    assert config["vocab_size"] == 64
    assert config["eos_token_id"] == tokenizer.eos_token_id
    assert config["pad_token_id"] is None  # else the end token's embedding would never learn
