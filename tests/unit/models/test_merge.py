"""Interpolated weights: the sources at the ends, the formulas between, and every tensor accounted for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import sources
from preceptor.models.merge import Method, angle, interpolate, plan_merge
from preceptor.models.sources import Source, stored_config
from preceptor.models.streaming import write_model
from preceptor.recipe import ModelSpec

METHODS: tuple[Method, ...] = ("linear", "slerp")


def merged(
    first: ModelSpec, second: ModelSpec, folder: Path, alpha: float, method: Method = "linear", shard_bytes: int = 9000
) -> dict[str, torch.Tensor]:
    def use(found: list[Source]) -> None:
        planned = plan_merge(*found, alpha=alpha, method=method)
        write_model(folder, stored_config(found[0], found[0].checkpoint.dtype), planned, shard_bytes=shard_bytes)

    sources.using([first, second], folder.parent, use)
    return stored(folder)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def pair(tmp_path: Path, kind: str = "mistral", **options: Any) -> tuple[ModelSpec, ModelSpec]:
    first, second = (sources.write(tmp_path / name, kind, seed, **options) for seed, name in enumerate("ab"))
    return first, second


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "mixtral", "qwen3_moe"])
def test_the_ends_are_the_sources_bit_for_bit(tmp_path: Path, kind: str, dtype: torch.dtype, method: Method) -> None:
    a, b = pair(tmp_path, kind, dtype=dtype, **(sources.SPARSE_SIZES if "mi" in kind or "moe" in kind else {}))
    for spec in (a, b):
        # 1·a + 0·b would make it 0, and nan of an infinite b
        add_tensors(Path(spec.path), **{"model.norm.weight": torch.tensor([-0.0, math.inf] * 8, dtype=dtype)})
    for alpha, source in ((0.0, a), (1.0, b)):
        result, wanted = merged(a, b, tmp_path / "out", alpha, method), stored(Path(source.path))
        assert result.keys() == wanted.keys()
        assert all(torch.equal(result[name].view(torch.uint8), wanted[name].view(torch.uint8)) for name in wanted)
        assert {tensor.dtype for tensor in result.values()} == {dtype}
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[f"{how}_keys"] for how in ("missing", "unexpected", "mismatched")), report
    assert model.dtype == dtype


@pytest.mark.parametrize("kind", ["mistral", "mixtral"])
def test_between_the_ends_each_tensor_follows_the_formula(tmp_path: Path, kind: str) -> None:
    a, b = pair(tmp_path, kind, **(sources.SPARSE_SIZES if kind == "mixtral" else {}))
    ours, theirs = stored(Path(a.path)), stored(Path(b.path))
    for alpha in (0.25, 0.7):
        straight, arc = (merged(a, b, tmp_path / method, alpha, method) for method in METHODS)
        for name in ours:
            x, y = ours[name].double(), theirs[name].double()
            torch.testing.assert_close(straight[name].double(), (1 - alpha) * x + alpha * y, rtol=0, atol=1e-6)
            # Brute force: the point of the plane of x and y that divides their angle in the given ratio.
            e1 = x / x.norm()
            e2 = y - (y * e1).sum() * e1
            e2 = e2 / e2.norm()
            omega = math.atan2(float((y * e2).sum()), float((y * e1).sum()))
            unit = math.cos(alpha * omega) * e1 + math.sin(alpha * omega) * e2
            found = arc[name].double()
            # x and y differ in length, and only the formula on unit vectors ends on that point.
            weights = math.sin((1 - alpha) * omega) / math.sin(omega), math.sin(alpha * omega) / math.sin(omega)
            torch.testing.assert_close(found, weights[0] * x + weights[1] * y, rtol=0, atol=1e-5)
            equal_length = weights[0] * e1 + weights[1] * (y / y.norm())
            torch.testing.assert_close(equal_length, unit, rtol=0, atol=1e-9)


def between(a: torch.Tensor, b: torch.Tensor, alpha: float, method: Method) -> torch.Tensor:
    return interpolate(a, b, alpha, method, torch.float32)


def test_an_arc_keeps_the_length_that_a_chord_loses() -> None:
    a, b = torch.eye(6)[:2].reshape(2, 2, 3)
    middle, chord = between(a, b, 0.5, "slerp"), between(a, b, 0.5, "linear")
    assert middle.norm().item() == pytest.approx(1.0, abs=1e-6)
    assert chord.norm().item() == pytest.approx(math.sqrt(0.5), abs=1e-6)
    assert angle(a, b) == pytest.approx(math.pi / 2)
    quarter = between(a, b, 0.25, "slerp")
    assert angle(a, quarter) == pytest.approx(math.pi / 8, abs=1e-6)


def test_the_angle_of_large_tensors_is_summed_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    a = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) + 3
    b = a + 1e-3 * torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    x, y = a.double(), b.double()
    exact = math.atan2(float((y - (x @ y) / (x @ x) * x).norm()), float((x @ y) / x.norm()))
    for chunk in (1 << 22, 999):
        monkeypatch.setattr("preceptor.models.merge._CHUNK", chunk)
        assert angle(a, b) == pytest.approx(exact, rel=1e-6)


def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(2, 7, 13, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole = [between(a, b, 0.3, method) for method in METHODS]
    monkeypatch.setattr("preceptor.models.merge._CHUNK", 10)
    for method, expected in zip(METHODS, whole, strict=True):
        torch.testing.assert_close(between(a, b, 0.3, method), expected, rtol=0, atol=1e-6)


def test_where_the_arc_has_no_value_the_chord_stands_in() -> None:
    a = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(5, 7)
    for b in (a, 2 * a, -a, -3 * a, zero, a + 1e-6 * torch.ones(5, 7)):
        for alpha in (0.3, 0.5):
            assert torch.equal(between(a, b, alpha, "slerp"), between(a, b, alpha, "linear"))
            assert torch.equal(between(b, a, alpha, "slerp"), between(b, a, alpha, "linear"))
    assert torch.equal(between(zero, zero, 0.5, "slerp"), zero)
    barely = between(a, a + 0.01 * torch.ones(5, 7), 0.5, "slerp")
    assert not torch.equal(barely, between(a, a + 0.01 * torch.ones(5, 7), 0.5, "linear"))


def test_computed_in_float32_and_written_in_the_first_models_dtype(tmp_path: Path) -> None:
    a = sources.write(tmp_path / "a", seed=0, dtype=torch.bfloat16)
    b = sources.write(tmp_path / "b", seed=1)
    ours, theirs = stored(tmp_path / "a"), stored(tmp_path / "b")
    there, back = merged(a, b, tmp_path / "ab", 0.25), merged(b, a, tmp_path / "ba", 0.75)
    for name in ours:
        assert torch.equal(there[name], (0.75 * ours[name].float()).add(theirs[name], alpha=0.25).bfloat16())
        assert back[name].dtype == torch.float32
        torch.testing.assert_close(back[name], 0.25 * theirs[name] + 0.75 * ours[name].float(), rtol=0, atol=1e-6)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ab").dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ba").dtype == torch.float32
    assert torch.equal(merged(a, b, tmp_path / "end", 1.0)["lm_head.weight"], theirs["lm_head.weight"].bfloat16())


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    a, b = pair(tmp_path, tie_word_embeddings=True)
    result = merged(a, b, tmp_path / "out", 0.5, "slerp")
    assert "lm_head.weight" not in result
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, result["model.embed_tokens.weight"])


def add_tensors(folder: Path, **tensors: torch.Tensor) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), **tensors}, file, metadata={"format": "pt"})


def test_whole_numbers_are_carried_over_and_float64_keeps_its_precision(tmp_path: Path) -> None:
    a, b = pair(tmp_path, dtype=torch.bfloat16)
    counts = torch.arange(4)
    precise = torch.tensor([1.0 + 2**-40, 3.0], dtype=torch.float64)
    add_tensors(tmp_path / "a", counts=counts, precise=precise)
    add_tensors(tmp_path / "b", counts=counts, precise=precise + 2**-40)
    result = merged(a, b, tmp_path / "out", 0.5)
    assert torch.equal(result["counts"], counts)
    assert torch.equal(result["precise"], precise + 2**-41)


def test_an_adapter_is_merged_before_the_interpolation(tmp_path: Path) -> None:
    base = sources.write(tmp_path / "a", dtype=torch.bfloat16)
    adapter = sources.write_adapter(tmp_path / "adapter", base)
    expert = base.model_copy(update={"adapter": adapter})
    full, dense = sources.with_adapter(base, adapter).state_dict(), stored(tmp_path / "a")
    end, half = merged(base, expert, tmp_path / "end", 1.0), merged(base, expert, tmp_path / "half", 0.5)
    back = merged(expert, base, tmp_path / "back", 0.0)
    for name in dense:
        assert end[name].dtype == back[name].dtype == torch.bfloat16
        assert torch.equal(end[name], full[name].bfloat16())
        assert torch.equal(back[name], full[name].bfloat16())
        assert torch.equal(half[name], (0.5 * dense[name].float()).add(full[name], alpha=0.5).bfloat16())
    assert not torch.equal(end["model.layers.0.mlp.up_proj.weight"], dense["model.layers.0.mlp.up_proj.weight"])
    assert not (tmp_path / ".merged").exists()


def test_an_adapter_on_a_mixture(tmp_path: Path) -> None:
    base = sources.write(tmp_path / "a", "mixtral", **sources.SPARSE_SIZES)
    adapter = sources.write_adapter(tmp_path / "adapter", base)
    expert = base.model_copy(update={"adapter": adapter})
    result = merged(base, expert, tmp_path / "out", 1.0)
    ids = sources.token_ids()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(model(ids).logits, sources.with_adapter(base, adapter)(ids).logits, rtol=0, atol=1e-5)
    assert result.keys() == stored(tmp_path / "a").keys()
