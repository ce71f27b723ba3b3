"""Sampling: the right distribution, rows that do not see each other, and agreement with a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from preceptor.models.sampling import pick, row_uniforms, sample

SIZES = {
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
PROMPTS = [[1, 4, 9], [1], [1, 3, 3, 8, 20, 11], [1, 2], [1, 7, 7, 7]]


def build(kind: str) -> Any:
    torch.manual_seed(3)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    if kind == "sliding":
        return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5)).eval()
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=23, n_embd=16, n_layer=2, n_head=2, n_positions=20, initializer_range=0.3)
    ).eval()


def alone(model: Any, prompt: list[int], uniforms: torch.Tensor, stop: set[int], temperature: float) -> Any:
    """The definition: one row, no cache, no padding; probabilities cumulated in order, the first above u wins."""
    ids = list(prompt)
    for u in uniforms.tolist():
        with torch.no_grad():
            p = (model(torch.tensor([ids])).logits[0, -1].double() / temperature).softmax(-1)
        total, token = 0.0, -1
        for candidate, probability in enumerate(p.tolist()):
            total += probability
            if u < total:
                token = candidate
                break
        if token in stop:
            return ids[len(prompt) :], True
        ids.append(token)
    return ids[len(prompt) :], False


@pytest.mark.parametrize("kind", ["llama", "sliding", "gpt2"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_batched_rows_are_what_each_row_gives_alone(kind: str, size: int) -> None:
    model, stop = build(kind), {5, 12}
    uniforms = [row_uniforms(7, row, 14) for row in range(len(PROMPTS))]
    got = []
    for start in range(0, len(PROMPTS), size):
        part = slice(start, start + size)
        got += sample(model, PROMPTS[part], uniforms[part], stop=stop, temperature=0.8)
    expected = [alone(model, prompt, u, stop, 0.8) for prompt, u in zip(PROMPTS, uniforms, strict=True)]
    assert [(row.tokens, row.finished) for row in got] == expected
    assert {row.finished for row in got} == {True, False}  # both ways to end are covered
    assert len({len(row.tokens) for row in got}) > 2


def test_rows_end_at_their_own_limits() -> None:
    model = build("gpt2")  # 20 learned positions: one step too far would be an index error
    limits = [17, 19, 14, 5, 1]
    uniforms = [row_uniforms(1, row, limit) for row, limit in enumerate(limits)]
    got = sample(model, PROMPTS, uniforms, stop=set())
    assert [len(row.tokens) for row in got] == limits
    assert not any(row.finished for row in got)


def test_tokens_are_drawn_with_their_probabilities() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 6) * 2
    count = 100_000
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = pick(logits.expand(count, -1), u, temperature=0.5, top_p=1.0)
    frequencies = drawn.bincount(minlength=6) / count
    torch.testing.assert_close(frequencies.double(), (logits[0].double() / 0.5).softmax(-1), atol=2e-5, rtol=0)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    u = torch.linspace(0, 1 - 1e-9, 1001, dtype=torch.float64)
    for top_p, kept in ((0.4, {1}), (0.6, {1, 3}), (0.8, {1, 2, 3}), (1.0, {0, 1, 2, 3})):
        drawn = pick(p.expand(len(u), -1), u, temperature=1.0, top_p=top_p)
        assert set(drawn.tolist()) == kept
    drawn = pick(p.expand(len(u), -1), u, temperature=1.0, top_p=0.6)
    assert (drawn == 1).double().mean().item() == pytest.approx(2 / 3, abs=2e-3)


def test_edges() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0]])
    last = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert pick(logits, torch.zeros(1, dtype=torch.float64), temperature=1.0, top_p=1.0).tolist() == [1]
    assert pick(logits, last, temperature=1.0, top_p=1.0).tolist() == [3]
    assert pick(torch.tensor([[0.0, 2.0, 1.0]]), last, temperature=0.0, top_p=1.0).tolist() == [1]


def test_row_streams_differ_by_row_and_seed() -> None:
    streams = {tuple(row_uniforms(seed, row, 4).tolist()) for seed in range(3) for row in range(3)}
    assert len(streams) == 9
    assert torch.equal(row_uniforms(5, 6, 8), row_uniforms(5, 6, 8))


def test_damaged_weights_are_told() -> None:
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="its logits are not numbers"):
        sample(model, [[1]], [row_uniforms(0, 0, 2)], stop={2})
