"""What each stage writes, read by plain transformers and PEFT in a process that never imports this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from interop import recipes, shop
from preceptor.models.load import load_model
from preceptor.recipe import ModelSpec
from preceptor.training.checkpoints import checkpoint_steps

IDS = [[1, 9, 10, 12, 20, 8, 15], [1, 30, 5, 7, 22, 11, 2]]
CHAT = [shop.turn("user", "what costs tea?")]
KINDS = {"drawn": "Qwen2ForCausalLM", "tuned": "LlamaForCausalLM", "mixed": "MixtralForCausalLM",
         "routed": "MixtralForCausalLM"}  # fmt: skip
ADAPTERS = {"adapted": "runs/r/taught/model", "lent": "one"}
"""The stages that write `adapter/`, and their bases as somebody in the recipe's folder names them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interop")
    recipes.run(folder)
    return folder


def models(folder: Path) -> dict[str, Path]:
    """Finished models, and weights in the middle of a training."""
    found = {name: folder / "runs/r" / name / "model" for name in recipes.MODELS}
    for name in ("taught", "routed"):
        found[f"{name} at step 1"] = checkpoint_steps(folder / "runs/r" / name / "checkpoints")[1]
    return found


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, Any]:
    """What the other process found: facts by model, and `logits`."""
    run = folder / "runs/r"
    job = {
        "models": {name: str(path) for name, path in models(folder).items()},
        "adapters": {
            name: [str(run / name / "adapter"), str(folder / base), str(folder)] for name, base in ADAPTERS.items()
        },
        "ids": IDS,
        "chat": CHAT,
    }
    (folder / "job.json").write_text(json.dumps(job))
    program = Path(__file__).with_name("plain_transformers.py")
    done = subprocess.run(
        [sys.executable, str(program), str(folder / "job.json"), str(folder / "logits.safetensors")],
        capture_output=True, text=True, timeout=250, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert not said["preceptor"], "it was to be without this project"
    return {**said["found"], "logits": load_file(folder / "logits.safetensors")}


def ours(path: Path, adapter: Path | None = None, *, merged: bool = False) -> torch.Tensor:
    spec = ModelSpec(path=str(path), adapter=None if adapter is None else str(adapter))
    with torch.no_grad():
        logits: torch.Tensor = (
            load_model(spec, role="student" if merged else "teacher").eval()(torch.tensor(IDS)).logits
        )
    return logits


@pytest.mark.parametrize("name", [*recipes.MODELS, "taught at step 1", "routed at step 1"])
def test_transformers_loads_it(name: str, folder: Path, plain: dict[str, Any]) -> None:
    path = models(folder)[name]
    found, config = plain[name], json.loads((path / "config.json").read_text())
    assert torch.equal(plain["logits"][name], ours(path))
    dtype = recipes.MODELS.get(name, "float32")
    assert found["dtype"] == f"torch.{dtype}"
    assert config["dtype"] == dtype
    assert found["kind"] == KINDS.get(name.split()[0], "MistralForCausalLM")
    assert found["report"] == {}
    assert found["tied"] == (name in ("drawn", "tuned"))
    if "step" in name:
        return  # the tokenizer is written once, with the finished model
    words = AutoTokenizer.from_pretrained(path)
    assert found["tokens"] == len(words)
    assert found["generation"] == {"bos": words.bos_token_id, "eos": words.eos_token_id}
    if name != "drawn":  # which has no chat template, nobody having asked for one
        assert words.chat_template == shop.TEMPLATE
        assert found["piped"]["role"] == "assistant"
        assert words.decode(found["answer"], skip_special_tokens=True) == found["piped"]["content"]
        assert len(found["answer"]) == 6 or found["answer"][-1] == words.eos_token_id


@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_loads_it(name: str, folder: Path, plain: dict[str, Any]) -> None:
    base, adapter = folder / ADAPTERS[name], folder / "runs/r" / name / "adapter"
    assert torch.equal(plain["logits"][name], ours(base, adapter))
    assert not torch.equal(plain["logits"][name], ours(base))
    assert torch.equal(plain["logits"][f"{name}, merged"], ours(base, adapter, merged=True))
    # By the name in its config alone, in the folder of the recipe, wherever that has been moved to.
    assert torch.equal(plain["logits"][f"{name}, found by PEFT"], ours(base, adapter))
    assert plain[name]["base"] == ADAPTERS[name]


def test_nothing_names_this_machine_or_holds_a_pickle(folder: Path) -> None:
    finished = [folder / "runs/r" / name / "model" for name in recipes.MODELS]
    finished += [folder / "runs/r" / name / "adapter" for name in ADAPTERS]
    for path in finished:
        names = {file.name for file in path.rglob("*") if file.is_file()}
        assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".jinja", ".md", ".model"}, path
        assert "README.md" in names
        for file in path.iterdir():
            assert str(folder).encode() not in file.read_bytes(), file
            assert str(folder.parent).encode() not in file.read_bytes(), file


def test_what_llama_cpp_looks_for(folder: Path) -> None:
    """The pieces' scores, which transformers does not write, and experts under their published names."""
    for name in ("taught/model", "mixed/model", "routed/model", "merged/model", "adapted/adapter", "lent/adapter"):
        assert (folder / "runs/r" / name / "tokenizer.model").read_bytes() == recipes.PIECES, name
    for name in ("drawn", "tuned"):
        assert not (folder / "runs/r" / name / "model/tokenizer.model").exists()
    for name in ("mixed", "routed"):
        stored = load_file(folder / "runs/r" / name / "model/model.safetensors")
        assert "model.layers.1.block_sparse_moe.experts.1.w2.weight" in stored
