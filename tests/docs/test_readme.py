"""What the README and the documentation show is true: recipes load, Python runs, commands and links exist."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from snippets import PAGES, ROOT, Snippet, snippets

LANGUAGES = {"sh", "yaml", "python"}
IDS = {"ids": lambda snippet: snippet.place}


def shell_lines() -> list[tuple[str, list[str]]]:
    """(place, words) of every command shown, comments left out."""
    lines = []
    for snippet in snippets("sh"):
        lines += [(snippet.place, shlex.split(line, comments=True)) for line in snippet.text.splitlines()]
    return [(place, words) for place, words in lines if words]


def inline_make_targets() -> set[str]:
    """Targets named in running text as `make TARGET`."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return set(re.findall(r"`make ([a-z]+)", text))


def test_every_block_is_of_a_language_that_is_checked() -> None:
    unchecked = [f"{s.place}: {s.language or 'no language'}" for s in snippets() if s.language not in LANGUAGES]
    assert not unchecked


def test_the_readme_begins_with_one_sentence_the_commands_and_a_table() -> None:
    parts = [part for part in (ROOT / "README.md").read_text(encoding="utf-8").split("\n\n") if part.strip()]
    assert parts[0].startswith("# preceptor")
    assert parts[1].count(". ") == 0
    assert "make demo" in parts[2]
    assert "preceptor run recipe.yaml" in parts[2]
    assert parts[3].startswith("|")


@pytest.mark.parametrize("snippet", snippets("yaml"), **IDS)
def test_yaml_is_a_valid_recipe(snippet: Snippet, tmp_path: Path) -> None:
    from preceptor.recipe import load_recipe

    path = tmp_path / "recipe.yaml"
    path.write_text(snippet.text, encoding="utf-8")
    assert load_recipe(path).stages


@pytest.mark.parametrize(
    ("place", "words"), [line for line in shell_lines() if line[1][0] == "make"], ids=lambda value: str(value)
)
def test_shown_make_targets_exist(place: str, words: list[str]) -> None:
    assert {word for word in words[1:] if "=" not in word} <= make_targets(), place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "words"), [line for line in shell_lines() if line[1][0] != "make"], ids=lambda value: str(value)
)
def test_shown_commands_run(
    place: str,
    words: list[str],
    user_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from preceptor.cli import main
    from preceptor.recipe.from_options import add_options

    assert words[0] == "preceptor", f"{place}: {words[0]} is neither make nor preceptor"
    monkeypatch.chdir(user_folder)
    if words[1] == "demo":  # takes minutes and has tests of its own; here only that it and its options exist
        assert main(["demo", "--help"]) == 0
        offered = capsys.readouterr().out
        assert all(word in offered for word in words[2:]), place
    elif words[1] == "evaluate" and {"--judge", "--tasks"} & set(words):  # need a network; here only their options
        parser = argparse.ArgumentParser()
        add_options(parser)
        parser.parse_intermixed_args(words[2:])
    else:
        if words[1] == "report":
            assert main(["run", "recipe.yaml"]) == 0
            if "scores" in words:
                assert main(["evaluate", "./student", "--general", "general.jsonl"]) == 0
        assert main(words[1:]) == 0, f"{place}: {capsys.readouterr().err[-2000:]}"


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_make_targets_named_in_text_exist() -> None:
    assert inline_make_targets() <= make_targets()


@pytest.mark.slow
@pytest.mark.parametrize("snippet", snippets("python"), **IDS)
def test_python_runs(snippet: Snippet, user_folder: Path) -> None:
    script = user_folder / "snippet.py"
    script.write_text(snippet.text, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=user_folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{snippet.place}\n{done.stderr[-3000:]}"


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    """A folder with what the examples name: models `teacher`, `student` and `tuned`, `recipe.yaml` and data files."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz0123456789 :.,?!'-\n<|>_/=+*()ABCDEFGH"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    for seed, name in enumerate(("teacher", "student", "tuned")):
        torch.manual_seed(seed)
        config = MistralConfig(
            vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        MistralForCausalLM(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    rows = [
        {"messages": [{"role": "user", "content": f"count to {i}"}, {"role": "assistant", "content": str(i)}]}
        for i in range(40)
    ]
    files = {"rows": rows, "general": [{**row, "metric": "exact"} for row in rows[:20]]}
    files["shop"] = [{**row, "metric": "exact"} for row in rows[20:]]
    for name, lines in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        "name: shop\ndata:\n  rows: {path: rows.jsonl, holdout: 4}\nstages:\n  kd:\n    kind: distill\n"
        "    student: ./student\n    teacher: ./teacher\n    data: rows\n    max_length: 64\n"
        "    objective: [{kind: logits}, {kind: attention}]\n    rows_per_step: 8\n"
        "    training: {max_steps: 2, per_device_train_batch_size: 4, report_to: none, use_cpu: true}\n",
        encoding="utf-8",
    )
    return tmp_path


LINK = re.compile(r"\[[^\]]+\]\((?P<target>[^)#]+)(?:#[^)]*)?\)")
BACKTICKED_PATH = re.compile(r"`((?:src|docs|tests|benchmarks|examples|recipes)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    local = [m["target"] for m in LINK.finditer(text) if "://" not in m["target"]]
    missing = [target for target in local if not (page.parent / target).exists()]
    shown = [path for path in BACKTICKED_PATH.findall(text) if not path.startswith("benchmarks/out")]
    missing += [path for path in shown if not (ROOT / path).exists()]
    assert not missing


def test_nothing_is_left_to_be_filled_in() -> None:
    marked = [
        f"{p.name}: {n}" for p in PAGES for n, line in enumerate(p.read_text("utf-8").splitlines(), 1) if "TBD" in line
    ]
    assert not marked
