"""A trained model is saved with the config it came with: training adds no padding token to it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from preceptor.models.load import load_model
from preceptor.recipe import ModelSpec, parse_recipe
from preceptor.stages.context import StageContext
from preceptor.stages.train import execute


def test_the_end_token_still_learns_in_the_next_stage(tmp_path: Path) -> None:
    words = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz "]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )  # no padding token, as Llama and Mistral have none: the end token is padded with
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    lines = [json.dumps({"text": text}) for text in ("once upon a time", "there was a cat", "it sat", "and slept")]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    training = {"max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no", "use_cpu": True}
    stage = {
        "kind": "sft",
        "model": "model",
        "data": "rows",
        "rows_per_step": 2,
        "max_length": 32,
        "training": training,
    }
    raw = {"name": "r", "runs_dir": str(tmp_path / "runs"), "data": {"rows": {"path": "rows.jsonl"}}}
    recipe = parse_recipe({**raw, "stages": {"sft": stage}}, folder=tmp_path)
    directory = tmp_path / "runs" / "r" / "sft"
    directory.mkdir(parents=True)

    execute(recipe.stages["sft"], StageContext(recipe, "sft", directory, 1, print))

    for file in ("config.json", "generation_config.json"):
        settings = json.loads((directory / "model" / file).read_text(encoding="utf-8"))
        assert settings.get("pad_token_id") is None, file
    again = load_model(ModelSpec(path=str(directory / "model")), role="student")
    assert again.get_input_embeddings().padding_idx is None
