"""Real code on tensors without memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from preceptor.estimate.simulation import Simulation
from preceptor.estimate.storages import GRADIENTS, WEIGHTS


def model(*layers: tuple[int, int]) -> nn.Sequential:
    with torch.device("meta"):
        return nn.Sequential(*(nn.Linear(i, o, bias=False) for i, o in layers))


def test_more_than_any_machine_holds() -> None:
    simulation = Simulation()
    net = simulation.adopt(model((10**6, 10**7)))
    with simulation:
        out = net(torch.ones(3, 10**6))
    assert tuple(out.shape) == (3, 10**7)
    assert simulation.storages.peak().total >= 4 * 10**13


def test_a_training_step_counted_by_hand() -> None:
    simulation = Simulation()
    N, D, E = 300, 400, 500  # more than 2**16 elements each, so that all are without memory
    net = simulation.adopt(model((D, E), (E, D)))
    simulation.storages.label(net.parameters(), WEIGHTS)
    with simulation:
        x = torch.zeros(N, D)
        net[1](net[0](x)).sum().backward()
    simulation.storages.label([p.grad for p in net.parameters()], GRADIENTS)
    peak = simulation.storages.peak()
    # In the backward of the first layer: both weights and both gradients, x, and the gradient on the hidden state. Of
    # the sum's gradient, its loss and what it sums there is one number each.
    assert 0 <= peak.total - 4 * (4 * D * E + N * D + N * E) <= 8
    assert peak.parts[WEIGHTS] == peak.parts[GRADIENTS] == 4 * 2 * D * E


def test_what_a_batch_says_stays_real() -> None:
    simulation = Simulation()
    embedding = simulation.adopt(_embedding())
    tokens = torch.tensor([[3, 0, 5, 0]])
    with simulation:
        places = tokens.nonzero()
        assert places.tolist() == [[0, 0], [0, 2]]
        out = embedding(tokens)[0, places[:, 1]]
        assert isinstance(out, FakeTensor)
        assert tuple(out.shape) == (2, 4000)


def _embedding() -> nn.Embedding:
    with torch.device("meta"):
        return nn.Embedding(100, 4000)


def test_checks_of_values_without_values_pass() -> None:
    simulation = Simulation()
    net = simulation.adopt(model((300, 300)))
    with simulation:
        out = net(torch.ones(300, 300))
        assert float(out.detach().sum()) == 0.0
        assert bool((out > 0).any()) is False
        assert int(out.argmax()) == 0
        assert torch.allclose(out, out + 1)
        with pytest.raises(Exception, match="nonzero"):
            out.nonzero()


def test_tied_weights_stay_one() -> None:
    simulation = Simulation()
    net = model((400, 400), (400, 400))
    net[1].weight = net[0].weight
    simulation.adopt(net)
    assert net[0].weight is net[1].weight
    simulation.storages.label(net.parameters(), WEIGHTS)
    assert simulation.storages.most(WEIGHTS) == 4 * 400 * 400


def test_a_large_mask_is_not_made() -> None:
    simulation = Simulation()
    with simulation:
        places = torch.arange(100_000)
        mask = places[:, None] >= places[None]
    assert isinstance(mask, FakeTensor)
    assert mask.numel() == 10**10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_groups(dtype: torch.dtype) -> None:
    simulation = Simulation()
    rows, weight = simulation.empty((64, 32), dtype), simulation.empty((4, 32, 16), dtype).requires_grad_()
    offsets = torch.tensor([16, 32, 48, 64], dtype=torch.int32)
    with simulation, simulation.phase("forward"):
        out = torch._grouped_mm(rows, weight, offs=offsets)
    with simulation, simulation.phase("backward"):
        out.sum().backward()
    assert tuple(out.shape) == (64, 16)
    assert weight.grad is not None
    assert tuple(weight.grad.shape) == (4, 32, 16)
    assert simulation.costs.phases["forward"].total_flops == 2 * 64 * 32 * 16
    assert simulation.costs.phases["backward"].total_flops == 2 * 64 * 32 * 16
