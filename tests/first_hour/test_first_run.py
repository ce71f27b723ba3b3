"""A newcomer's first hour at toy size: init, plan, run, report, evaluate, in pipes; nothing there is noise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from first_folder import LETTERS, rows, write_rows, write_tokenizer

pytestmark = pytest.mark.slow

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "PYTHONWARNINGS")},
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
# Lines of progress begin with a stage or a dataset, and an InputError's or RunFailed's with `error: `.
KNOWN = re.compile(r"(said|kd|distilled|expert|dae|scores|chats|shop|general|error|note): \S")


# All commands in one process, which imports torch once; each is announced on both streams.
PROGRAM = """\
import sys
from preceptor.cli import main
for command in sys.argv[1:]:
    for stream in (sys.stdout, sys.stderr):
        print("=== " + command, file=stream, flush=True)
    print("=== code", main(command.split()), flush=True)
"""
SMALL = (
    "stages.scores.max_new_tokens=2 stages.expert.training.num_train_epochs=1 stages.dae.training.num_train_epochs=1"
)
STEPS = {
    "init --teacher ./teacher --student ./student --data chats.jsonl --domain shop.jsonl --store --lora": (
        "recipe.yaml: said, kd, distilled, expert, dae, scores\nnext: preceptor plan recipe.yaml\n"
    ),
    "plan recipe.yaml --rate 1": "shop -> ",
    f"run recipe.yaml {SMALL}": "said  done  ",
    "store info runs/shop/said/store": "runs/shop/said/store: format version 1\n",
    "store verify runs/shop/said/store": "runs/shop/said/store: whole; ",
    "report runs/shop": "model ",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a student, rows, and the recipe that `preceptor init` writes for them, which has been run."""
    folder = tmp_path_factory.mktemp("first")
    for seed, (name, layers) in enumerate((("teacher", 2), ("student", 1))):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
        ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        config = MistralConfig(
            vocab_size=len(LETTERS) + 3, num_hidden_layers=layers, max_position_embeddings=128, **sizes, **ends
        )
        MistralForCausalLM(config).save_pretrained(folder / name)
        write_tokenizer(folder / name)
        special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(settings))
    write_rows(folder / "chats.jsonl", rows(range(30)))
    write_rows(folder / "shop.jsonl", rows(range(28, 48), metric="exact"))
    return folder


def test_from_init_to_the_report(folder: Path) -> None:
    """One walk, since each step needs the one before; every line of standard error is one that is meant."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *STEPS],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    said, noted = (dict(zip(STEPS, each.split("=== ")[1:], strict=False)) for each in _streams(done))
    for command, expected in STEPS.items():
        assert said[command].startswith(f"{command}\n{expected}"), noted[command]
        strange = [line for line in noted[command].splitlines()[1:] if not KNOWN.match(line)]
        assert not strange, command
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr
    assert (folder / "runs/shop/report/report.html").is_file()
    assert json.loads((folder / "runs/shop/scores/scores.json").read_text())["models"]


def _streams(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """Both streams, after every command was seen to end with 0."""
    assert done.stdout.count("=== code 0\n") == len(STEPS), done.stderr
    return done.stdout.replace("=== code 0\n", ""), done.stderr
