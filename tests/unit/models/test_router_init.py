"""Routers of a new mixture: sane logits, prompts sent to their expert, no expert favoured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import sources
from preceptor.errors import InputError
from preceptor.models import router_init
from preceptor.models.router_init import hidden_routers, random_routers, uniform_routers

KINDS = ("llama", "mistral", "qwen2", "qwen3")
PROMPTS = [
    [[1, 5, 6, 7, 5], [1, 6, 5, 8, 8, 7, 6], [1, 7, 7, 5, 6]],
    [[1, 20, 21, 22, 21, 22], [1, 22, 20], [1, 20, 20, 21, 22]],
    [[1, 12, 13, 14, 15, 12], [1, 15, 14, 13]],
]


def reader(model: PreTrainedModel) -> Any:
    state = model.state_dict()
    return lambda name: state[name].clone()


def entering(model: PreTrainedModel, rows: list[list[int]]) -> list[torch.Tensor]:
    """For each layer what enters the MLP for all tokens of `rows`, row by row, from the whole model."""
    seen: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, inputs, kept=kept: kept.append(inputs[0][0]))
        for layer, kept in zip(model.model.layers, seen, strict=True)
    ]
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row]))
    for hook in hooks:
        hook.remove()
    return [torch.cat(kept) for kept in seen]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 1024])
def test_hidden_states_are_those_of_the_whole_model(kind: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_init, "_BATCH_TOKENS", batch)
    window = {"sliding_window": 3} if kind == "mistral" else {}
    model = sources.model_of(kind, num_hidden_layers=3, **window)
    routers = hidden_routers(model.config, reader(model), PROMPTS)
    means = [[x.mean(0) for x in entering(model, rows)] for rows in PROMPTS]
    assert len(routers) == 3
    for layer, router in enumerate(routers):
        mu = torch.stack([expert[layer] for expert in means]).double()
        c = mu.mean(0)
        w = torch.stack([(m - c) - ((m - c) @ c) / (c @ c) * c for m in mu])
        # the direction is the formula's; the size is tested on its own below
        torch.testing.assert_close(router / router.norm(), (w / w.norm()).float(), rtol=0, atol=1e-5)


def test_logits_have_mean_0_for_every_expert_and_standard_deviation_1_over_all() -> None:
    model = sources.model_of("mistral")
    routers = hidden_routers(model.config, reader(model), PROMPTS)
    for layer, router in enumerate(routers):
        logits = [entering(model, rows)[layer] @ router.T for rows in PROMPTS]
        balanced = torch.stack([one.mean(0) for one in logits]).mean(0)  # every expert's prompts count alike
        assert balanced.abs().max() < 1e-5
        assert torch.stack([one.square().mean() for one in logits]).mean() == pytest.approx(1.0, abs=1e-4)


def test_prompts_go_to_their_expert_and_other_rows_of_their_kind_too() -> None:
    model = sources.model_of("llama")
    routers = hidden_routers(model.config, reader(model), PROMPTS)
    others = [[[1, 8, 6, 6, 5, 7]], [[1, 21, 21, 20, 22]], [[1, 13, 15, 12, 14, 14]]]
    right = total = 0
    for layer, router in enumerate(routers):
        for expert, rows in enumerate(others):
            chosen = (entering(model, rows)[layer][1:] @ router.T).argmax(-1)  # the begin token is in all prompts
            right, total = right + int((chosen == expert).sum()), total + len(chosen)
    assert right / total > 0.75  # 1/3 by chance


def test_a_longer_mean_draws_no_tokens() -> None:
    """Without its part along the common mean taken out, the expert with the longest mean would take nearly all."""
    states = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    long, short = states[:1500] + 12 * torch.eye(8)[0] + torch.eye(8)[1], states[1500:] + 8 * torch.eye(8)[0]
    mu = torch.stack([long.mean(0), short.mean(0)])
    c = mu.mean(0)
    naive = mu - c
    ours = naive - torch.outer(naive @ c, c) / (c @ c)
    both = torch.cat([long, short])
    share = [((both @ w.T).argmax(-1) == 0).float().mean().item() for w in (naive, ours)]
    assert share[0] > 0.95
    assert 0.4 < share[1] < 0.6


def test_the_same_prompts_for_two_experts() -> None:
    model = sources.model_of("mistral")
    with pytest.raises(InputError) as caught:
        hidden_routers(model.config, reader(model), [PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    assert str(caught.value) == (
        "prompts: those of experts 0 and 2 give the same hidden states in layer 0, so no router can tell them apart; "
        "name datasets that differ, or leave `prompts` out"
    )


def test_random_logits_have_standard_deviation_1_whatever_the_norms() -> None:
    for scale in (0.05, 1.0, 20.0):
        model = sources.model_of("llama", hidden_size=64, head_dim=16)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.post_attention_layernorm.weight *= scale
        routers = random_routers(model.config, 400, reader(model), seed=0)
        for layer, x in enumerate(entering(model, PROMPTS[0] + PROMPTS[1])):
            assert (x @ routers[layer].T).std().item() == pytest.approx(1.0, abs=0.2)


def test_random_depends_on_the_seed_and_the_layer_alone() -> None:
    model = sources.model_of("mistral")
    first, again, other = (random_routers(model.config, 2, reader(model), seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])
    assert first[0].shape == (2, 16)


def test_uniform_gives_every_token_the_same_experts() -> None:
    model = sources.model_of("mistral")
    (router, _) = uniform_routers(model.config, 3)
    x = entering(model, PROMPTS[0])[0]
    chosen = torch.topk((x @ router.T).softmax(-1), 2, dim=-1).indices
    assert len(chosen.unique(dim=0)) == 1


def test_long_prompts_do_not_grow_the_batches() -> None:
    lengths = [1, 1, 2, 3, 1000, 1024, 9000]
    spans = list(router_init._batches(lengths))
    assert spans == [(0, 4), (4, 1), (5, 1), (6, 1)]


def test_the_model_on_disk_is_read_layer_by_layer(tmp_path: Path) -> None:
    """Each layer's weights are read once, and no other layer's are needed for it."""
    spec = sources.write(tmp_path / "a", num_hidden_layers=3)
    read: list[str] = []

    def watch(found: list[sources.Source]) -> None:
        def one(name: str) -> torch.Tensor:
            read.append(name)
            return found[0].reader.read(name)

        hidden_routers(found[0].config, one, PROMPTS)

    sources.using([spec, spec], tmp_path, watch)
    assert len(read) == len(set(read))
    layers = [int(name.split(".")[2]) for name in read if ".layers." in name]
    assert layers == sorted(layers)
    assert {name for name in read if ".layers." not in name} == {"model.embed_tokens.weight"}
