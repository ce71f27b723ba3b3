"""Composed mixtures: exact where sources agree, every tensor where it belongs, loading in plain transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import sources
from preceptor.models.compose import Composition, base_tensors, check_experts, plan_composition
from preceptor.models.router_init import hidden_routers, random_routers, uniform_routers
from preceptor.models.sources import Source
from preceptor.models.streaming import write_model
from preceptor.recipe import ModelSpec

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# What must be carried over is set to something other than the sparse config's default.
KINDS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4, "head_dim": 8, "hidden_act": "gelu"},
    "llama": {"rope_parameters": LLAMA3_ROPE},
    "qwen2": {"rope_parameters": {"rope_type": "linear", "rope_theta": 2e4, "factor": 4.0}},
    "qwen3": {"head_dim": 8, "attention_bias": True},
}
SPARSE = {"mistral": "Mixtral", "llama": "Mixtral", "qwen2": "Qwen2Moe", "qwen3": "Qwen3Moe"}
PROMPTS = [[[1, 5, 6, 7], [1, 6]], [[1, 12, 13]], [[1, 18, 19, 20, 18]]]


def composed(
    experts: list[ModelSpec],
    folder: Path,
    *,
    base: ModelSpec | None = None,
    average: bool = False,
    experts_per_token: int = 1,
    router: str = "random",
    noise: float = 0.0,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = 20_000,
) -> Composition:
    """Writes the mixture into `folder`."""

    def use(found: list[Source]) -> Composition:
        members = found[: len(experts)]
        origin = None if average else found[-1] if base is not None else members[0]
        read = base_tensors(members, origin)
        config = found[0].config
        check_experts(found)
        if router == "hidden":
            routers = hidden_routers(config, read, PROMPTS[: len(experts)])
        elif router == "random":
            routers = random_routers(config, len(experts), read, seed)
        else:
            routers = uniform_routers(config, len(experts))
        made = plan_composition(
            members, origin, routers, experts_per_token=experts_per_token, noise=noise, seed=seed, dtype=dtype
        )
        write_model(folder, made.config, made.planned, shard_bytes=shard_bytes)
        return made

    made: Composition = sources.using([*experts, *([base] if base else [])], folder.parent, use)
    return made


def load(folder: Path) -> PreTrainedModel:
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[f"{how}_keys"] for how in ("missing", "unexpected", "mismatched")), report
    return model.eval()


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    result: torch.Tensor = model(sources.token_ids()).logits
    return result


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_identical_sources_give_the_sources_logits(tmp_path: Path, kind: str, tied: bool) -> None:
    spec = sources.write(tmp_path / "dense", kind, tie_word_embeddings=tied, **KINDS[kind])
    expected = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "dense"))
    for count, chosen in ((2, 1), (2, 2), (3, 2)):
        for router in ("hidden", "random", "uniform"):
            made = composed([spec] * count, tmp_path / "sparse", experts_per_token=chosen, router=router)
            model = load(tmp_path / "sparse")
            assert type(model).__name__ == made.architecture == f"{SPARSE[kind]}ForCausalLM"
            assert model.config.num_experts_per_tok == chosen
            assert model.config.num_experts == count
            torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
            assert made.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert ("lm_head.weight" in stored(tmp_path / "sparse")) is not tied


@pytest.mark.parametrize("kind", KINDS)
def test_each_expert_is_the_mlp_of_its_source_and_all_else_the_bases(tmp_path: Path, kind: str) -> None:
    a, b, base = (sources.write(tmp_path / name, kind, seed, **KINDS[kind]) for seed, name in enumerate("abc"))
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "c")
    for first, second in ((a, b), (b, a)):
        # With all logits 0 and one expert per token, expert 0 has every token.
        composed([first, second], tmp_path / "sparse", base=base, router="uniform")
        mlp = {n: t for n, t in stored(Path(first.path)).items() if ".mlp." in n}
        assert len(mlp) == 6
        wanted.load_state_dict(mlp, strict=False)
        torch.testing.assert_close(logits(load(tmp_path / "sparse")), logits(wanted), rtol=0, atol=1e-5)


def test_the_average_as_base(tmp_path: Path) -> None:
    specs = [sources.write(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    composed(specs, tmp_path / "sparse", average=True, router="hidden")
    result, dense = stored(tmp_path / "sparse"), [stored(Path(spec.path)) for spec in specs]
    shared = [name for name in result if ".block_sparse_moe." not in name]
    assert sorted(shared) == sorted(name for name in dense[0] if ".mlp." not in name)
    for name in shared:
        mean = torch.stack([tensors[name].double() for tensors in dense]).mean(0)
        torch.testing.assert_close(result[name].double(), mean, rtol=0, atol=1e-6)
    for expert in range(3):
        stays = dense[expert]["model.layers.1.mlp.up_proj.weight"]
        assert torch.equal(result[f"model.layers.1.block_sparse_moe.experts.{expert}.w3.weight"], stays)


def test_noise_is_relative_to_each_tensor_and_fixed_by_the_seed(tmp_path: Path) -> None:
    spec = sources.write(tmp_path / "a", hidden_size=64, intermediate_size=96, num_attention_heads=4)
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        composed([spec, spec], tmp_path / name, noise=0.1, seed=seed, shard_bytes=10**9 if name == "again" else 20_000)
    dense = stored(tmp_path / "a")
    one, again, other = (stored(tmp_path / name) for name in ("one", "again", "other"))
    assert all(torch.equal(one[name], again[name]) for name in one)
    for name, weight in one.items():
        if ".experts." not in name:
            assert name.endswith("gate.weight") or torch.equal(weight, dense[name])
            continue
        layer, dense_name = name.split(".")[2], {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
        source = dense[f"model.layers.{layer}.mlp.{dense_name[name.split('.')[-2]]}.weight"]
        assert ((weight - source).std() / source.std()).item() == pytest.approx(0.1, rel=0.05)
        assert not torch.equal(weight, other[name])
        assert not torch.equal(weight, one[name.replace("experts.0", "experts.1")]) or "experts.1" in name


def test_the_dtype_is_the_one_asked_for(tmp_path: Path) -> None:
    spec = sources.write(tmp_path / "a")
    composed([spec, spec], tmp_path / "full", router="hidden", noise=0.01)
    composed([spec, spec], tmp_path / "half", router="hidden", noise=0.01, dtype=torch.bfloat16)
    full, half = stored(tmp_path / "full"), stored(tmp_path / "half")
    assert all(torch.equal(tensor.bfloat16(), half[name]) for name, tensor in full.items())
    assert load(tmp_path / "half").dtype == torch.bfloat16
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_active_parameters_leave_out_the_experts_that_are_not_chosen(tmp_path: Path, kind: str) -> None:
    spec = sources.write(tmp_path / "a", kind)
    dense = sum(tensor.numel() for tensor in stored(tmp_path / "a").values())
    expert = 2 * 3 * 16 * 24  # layers, matrices, sizes
    beside = 2 * 3 * 16  # routers
    if kind == "qwen2":
        beside += 2 * (3 * 16 * 16 + 16)  # the shared expert and its gate
    made = composed([spec] * 3, tmp_path / "sparse", experts_per_token=2)
    assert made.parameters == dense + 2 * expert + beside
    assert made.active_parameters == dense + expert + beside
    assert composed([spec] * 3, tmp_path / "sparse", experts_per_token=3).active_parameters == made.parameters


def test_the_shared_expert_of_qwen2_is_nothing_and_stays_so(tmp_path: Path) -> None:
    specs = [sources.write(tmp_path / name, "qwen2", seed) for seed, name in enumerate("ab")]
    composed(specs, tmp_path / "sparse", experts_per_token=2)
    model = load(tmp_path / "sparse")
    model(sources.token_ids()).logits.square().sum().backward()
    shared = [p for name, p in model.named_parameters() if "shared_expert" in name]
    assert len(shared) == 8
    assert all(not p.any() and not p.grad.any() for p in shared)
    assert all(p.grad.any() for name, p in model.named_parameters() if ".experts." in name or ".mlp.gate." in name)


def test_one_expert_per_token_gives_the_router_no_gradient(tmp_path: Path) -> None:
    """What `stages/compose.py` tells the user: the weight of a single chosen expert is 1 whatever the router says."""
    specs = [sources.write(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    for chosen in (1, 2):
        composed(specs, tmp_path / "sparse", experts_per_token=chosen)
        model = load(tmp_path / "sparse")
        model(sources.token_ids()).logits.square().sum().backward()
        moved = [p.grad.abs().max().item() for name, p in model.named_parameters() if name.endswith("gate.weight")]
        assert all(size > 1e-3 for size in moved) if chosen == 2 else all(size < 1e-3 for size in moved), moved


def test_a_process_that_knows_nothing_of_preceptor_loads_it(tmp_path: Path) -> None:
    spec = sources.write(tmp_path / "dense")
    composed([spec, spec], tmp_path / "sparse", experts_per_token=2, router="hidden")
    script = f"""
import sys, torch
from transformers import AutoModelForCausalLM
model, report = AutoModelForCausalLM.from_pretrained({str(tmp_path / "sparse")!r}, output_loading_info=True)
assert not (report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]), report
assert not any(name.split(".")[0] == "preceptor" for name in sys.modules)
ids = torch.tensor({sources.token_ids().tolist()})
torch.save(model(ids).logits.detach(), {str(tmp_path / "logits.pt")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=tmp_path)
    theirs = torch.load(tmp_path / "logits.pt", weights_only=True)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    torch.testing.assert_close(theirs, logits(dense), rtol=0, atol=1e-5)


def test_an_expert_that_is_an_adapter_on_a_shared_base(tmp_path: Path) -> None:
    base = sources.write(tmp_path / "a", dtype=torch.bfloat16)
    adapter = sources.write_adapter(tmp_path / "adapter", base)
    made = composed([base, base.model_copy(update={"adapter": adapter})], tmp_path / "sparse", dtype=torch.bfloat16)
    assert made.parameters == sum(p.numel() for p in load(tmp_path / "sparse").parameters())
    merged = sources.with_adapter(base, adapter).state_dict()
    result = stored(tmp_path / "sparse")
    dense = stored(tmp_path / "a")
    for layer in (0, 1):
        name, there = f"model.layers.{layer}.mlp.down_proj.weight", f"model.layers.{layer}.block_sparse_moe.experts"
        assert torch.equal(result[f"{there}.0.w2.weight"], dense[name])
        assert torch.equal(result[f"{there}.1.w2.weight"], merged[name].bfloat16())
        assert not torch.equal(merged[name].bfloat16(), dense[name])
    assert not (tmp_path / ".merged").exists()
